# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""Finds labelled volumes: MSD-style json lists, the folders of MSD and nnU-Net, and tables of findings."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from bundle.data.find import VOLUME_SUFFIXES, FoundVolume, find_listed, modality_named, volume_files
from bundle.errors import UserError

__all__ = ["check_findings", "find_boxes", "find_findings", "find_segmentations"]

_LAYOUTS = (("imagesTr", "labelsTr"), ("images", "labels"))


def find_segmentations(dataset_dir: str | os.PathLike[str]) -> list[FoundVolume]:
    """Volumes with a label map each.

    Args:
        dataset_dir: an MSD-style json (`training`, and optionally `validation`, list objects with `image` and `label`,
            relative to it), a folder that holds such a `dataset.json`, or a folder with `imagesTr` and `labelsTr` (or
            `images` and `labels`) in which a volume and its label map have one name; nnU-Net's `_0000` is understood.

    Returns:
        Volumes whose annotations hold the file `label`, sorted by name.

    Raises:
        UserError: if nothing is found, or the list cannot be used.
    """
    root = Path(dataset_dir)
    listed = root / "dataset.json" if (root / "dataset.json").is_file() else root
    if listed.is_file():
        volumes = _from_list(listed, ("label",))
    else:
        volumes = [pair for images, labels in _LAYOUTS for pair in _pairs(root / images, root / labels)]
    if not volumes:
        raise UserError(
            f"--dataset_dir {root} holds no labelled volumes: give an MSD-style dataset.json with training: "
            "[{image, label}], or a folder with imagesTr and labelsTr"
        )
    return sorted(volumes, key=lambda volume: volume.name)


def check_findings(findings: Sequence[str]) -> int:
    """The number of findings, for a network's last layer.

    Raises:
        UserError: if there is none, one is named twice, or it is no list of names.
    """
    is_list = isinstance(findings, Sequence) and not isinstance(findings, str)
    names = [finding for finding in findings if isinstance(finding, str)] if is_list else []
    if not names or len(set(names)) < len(findings):
        raise UserError(
            f'--findings {findings} does not fit: list columns of labels.csv, such as "[aneurysm, stenosis]"'
        )
    return len(names)


def find_findings(dataset_dir: str | os.PathLike[str], findings: Sequence[str]) -> list[FoundVolume]:
    """Volumes with a row of findings each, 1 or 0, for classification.

    Args:
        dataset_dir: a table `labels.csv`, or the folder that holds it. Its column `image` names a file, or a folder of
            one DICOM series, relative to the table; each finding has a column; the optional column `part` says
            "training" or "validation", the optional `group` which volumes belong together (one patient), and
            `modality` CT or MR. An empty cell of a finding means not known, and counts in neither loss nor metric.
        findings: the columns to learn.

    Returns:
        Volumes whose annotations hold `label`, a list of 0.0, 1.0 or NaN, sorted by name.

    Raises:
        UserError: if there is no table, or it lacks a column, or a cell is neither 0, 1 nor empty.
    """
    check_findings(findings)
    root = Path(dataset_dir)
    table = root / "labels.csv" if root.is_dir() else root
    if not table.is_file() or table.suffix != ".csv":
        raise UserError(f"--dataset_dir {root} has no labels.csv: give a table with a column image and one per finding")
    with table.open(newline="", encoding="utf-8-sig") as file:
        rows = list(csv.DictReader(file))  # a row that is too short has None for a cell, one too long None as a key
    if missing := {"image", *findings} - set(rows[0] if rows else ()):
        raise UserError(
            f"{table} has no column {', '.join(sorted(missing))}: name the findings in `findings` as its columns are"
        )
    volumes: list[FoundVolume] = []
    has_parts = any(row.get("part") for row in rows)
    for line, row in enumerate(rows, start=2):
        if None in row or None in row.values():
            raise UserError(f"{table}, line {line} has another number of cells than the header: correct it")
        part = (row.get("part") or "training") if has_parts else ""
        if part not in ("", "training", "validation"):
            raise UserError(f"{table}, line {line}: part {part!r} is neither training nor validation: correct it")
        values = [_finding(row[name], f"{table}, line {line}, column {name}") for name in findings]
        volumes += find_listed(
            table.parent / row["image"],
            row["image"],
            modality=modality_named(row.get("modality")),
            part=part,
            group=row.get("group") or "",
            annotations={"label": values},
        )
    return sorted(volumes, key=lambda volume: volume.name)


def find_boxes(dataset_dir: str | os.PathLike[str]) -> list[FoundVolume]:
    """Volumes with a list of boxes each, for detection.

    Args:
        dataset_dir: a json as MONAI's detection tutorials use (or a folder with a `dataset.json`): `training` and
            optionally `validation` list objects with `image`, `box` and `label`. A box is [x, y, z, width, height,
            depth], its centre and size in mm in the image's RAS world coordinates; a label counts from 0. An empty list
            of boxes is a volume without a finding.

    Returns:
        Volumes whose annotations hold `box` and `label`, sorted by name.

    Raises:
        UserError: if nothing is found, or the list cannot be used.
    """
    root = Path(dataset_dir)
    listed = root / "dataset.json" if root.is_dir() else root
    if not listed.is_file():
        raise UserError(f"--dataset_dir {root} has no dataset.json: give one with training: [{{image, box, label}}]")
    volumes = _from_list(listed, ("box", "label"))
    for volume in volumes:
        boxes, labels = volume.annotations["box"], volume.annotations["label"]
        if not isinstance(boxes, list) or not isinstance(labels, list) or len(boxes) != len(labels):
            raise UserError(f"{listed} gives {volume.name} not one label for each box: list as many labels as boxes")
        if any(len(box) != 6 or min(box[3:]) <= 0 for box in boxes):
            raise UserError(f"{listed} gives {volume.name} a box that is not x, y, z, width, height, depth in mm")
    return sorted(volumes, key=lambda volume: volume.name)


def _from_list(listed: Path, wanted: tuple[str, ...]) -> list[FoundVolume]:
    try:
        content = json.loads(listed.read_text())
    except (ValueError, OSError) as error:
        raise UserError(f"--dataset_dir {listed} is no readable json ({error}): correct or replace it") from error
    if not isinstance(content, Mapping) or not isinstance(content.get("training"), list):
        raise UserError(f"--dataset_dir {listed} has no list 'training': list objects with image, {', '.join(wanted)}")
    has_split = bool(content.get("validation"))
    volumes: list[FoundVolume] = []
    for part in ("training", "validation"):
        for entry in content.get(part) or []:
            if not isinstance(entry, Mapping) or any(key not in entry for key in ("image", *wanted)):
                raise UserError(f"{listed} lists {entry!r} in {part!r}: give objects with image, {', '.join(wanted)}")
            annotations: dict[str, Any] = {key: entry[key] for key in wanted}
            if wanted == ("label",):
                annotations["label"] = str(listed.parent / entry["label"])
            volumes += find_listed(
                listed.parent / entry["image"],
                entry["image"],
                modality=modality_named(entry.get("modality")),
                part=part if has_split else "",
                group=str(entry.get("group", "")),
                annotations=annotations,
            )
    return volumes


def _pairs(images: Path, labels: Path) -> Iterator[FoundVolume]:
    if not (images.is_dir() and labels.is_dir()):
        return
    label_files = {_stem(path): path for path in volume_files(labels)}
    for path in volume_files(images):
        stem = _stem(path)
        if stem.endswith("_0000"):  # nnU-Net's number of the channel
            stem = stem.removesuffix("_0000")
        label = label_files.get(stem, labels / path.name)  # one that is not there is reported with its volume
        yield FoundVolume(name=path.name, files=(str(path),), annotations={"label": str(label)})


def _stem(path: Path) -> str:
    suffix = max((s for s in VOLUME_SUFFIXES if path.name.lower().endswith(s)), key=len)
    return path.name[: -len(suffix)]


def _finding(cell: str, where: str) -> float:
    if cell.strip() == "":
        return float("nan")
    try:
        value = float(cell)
    except ValueError:
        value = -1.0
    if value not in (0.0, 1.0):
        raise UserError(f"{where} holds {cell!r}: give 1, 0, or nothing where it is not known")
    return value
