# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""Finds labelled volumes: MSD-style json lists, the folders of MSD and nnU-Net, and tables of findings."""

from __future__ import annotations

import csv
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from bundle.data.find import FoundVolume, find_listed, modality_named, volume_files
from bundle.data.names import without_ending
from bundle.errors import UserError

__all__ = ["check_findings", "find_boxes", "find_findings", "find_segmentations"]

_LAYOUTS = (("imagesTr", "labelsTr"), ("images", "labels"))
_CHANNEL = re.compile(r"_\d{4}$")  # nnU-Net's number of the channel


def find_segmentations(dataset_dir: str | os.PathLike[str]) -> list[FoundVolume]:
    """Volumes with a label map each.

    Several images of one grid (T1, T2, ...) are the channels of one volume: an `image` that lists their files, or
    nnU-Net's files `<case>_0000`, `<case>_0001`, ...

    Args:
        dataset_dir: an MSD-style json (`training`, and optionally `validation`, list objects with `image` and `label`,
            relative to it), a folder that holds such a `dataset.json`, or a folder with `imagesTr` and `labelsTr` (or
            `images` and `labels`) in which a volume and its label map have one name, nnU-Net's number apart.

    Returns:
        Volumes whose annotations hold the file `label`, sorted by name.

    Raises:
        UserError: if nothing is found, or the list cannot be used.
    """
    root = Path(dataset_dir)
    listed = root / "dataset.json" if (root / "dataset.json").is_file() else root
    # nnU-Net has a dataset.json, too, which lists no volumes
    if listed.is_file() and (listed == root or "training" in _json(listed)):
        volumes = _from_list(listed, ("label",))
    else:
        modality = _modality_of_all(_json(listed)) if listed.is_file() else ""
        volumes = [pair for images, labels in _LAYOUTS for pair in _pairs(root / images, root / labels, modality)]
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
    content = _json(listed)
    if not isinstance(content.get("training"), list):
        raise UserError(f"--dataset_dir {listed} has no list 'training': list objects with image, {', '.join(wanted)}")
    if not isinstance(content.get("validation") or [], list):
        raise UserError(f"--dataset_dir {listed} has a 'validation' that is no list: list its volumes or remove it")
    has_split = bool(content.get("validation"))
    volumes: list[FoundVolume] = []
    for part in ("training", "validation"):
        for entry in content.get(part) or []:
            if not isinstance(entry, Mapping) or any(key not in entry for key in ("image", *wanted)):
                raise UserError(f"{listed} lists {entry!r} in {part!r}: give objects with image, {', '.join(wanted)}")
            annotations: dict[str, Any] = {key: entry[key] for key in wanted}
            if wanted == ("label",):
                annotations["label"] = str(listed.parent / _paths(entry["label"], listed)[0])
            image, *others = _paths(entry["image"], listed)
            channels = [find_listed(listed.parent / other, other)[0].files for other in others]
            found = find_listed(
                listed.parent / image,
                image,
                modality=modality_named(entry.get("modality")) or _modality_of_all(content),
                part=part if has_split else "",
                group=str(entry.get("group", "")),
                annotations=annotations,
            )
            volumes += [replace(volume, channels=tuple(channels)) for volume in found]
    return volumes


def _json(file: Path) -> Mapping[str, Any]:
    try:
        content = json.loads(file.read_text())
    except (ValueError, OSError) as error:
        raise UserError(f"--dataset_dir {file} is no readable json ({error}): correct or replace it") from error
    if not isinstance(content, Mapping):
        raise UserError(f"--dataset_dir {file} is not the json of a dataset: give an object with a list 'training'")
    return content


def _modality_of_all(content: Mapping[str, Any]) -> str:
    """What MSD's `modality` and nnU-Net's `channel_names` say of the first channel, such as {"0": "CT"}."""
    channels = content.get("modality") or content.get("channel_names")
    return modality_named(channels.get("0") if isinstance(channels, Mapping) else channels)


def _paths(value: object, listed: Path) -> list[str]:
    paths = [value] if isinstance(value, str) else value
    if not isinstance(paths, list) or not paths or not all(isinstance(path, str) for path in paths):
        raise UserError(f"{listed} lists {value!r} where a path belongs: give one, or a list of them as channels")
    return paths


def _pairs(images: Path, labels: Path, modality: str) -> Iterator[FoundVolume]:
    if not (images.is_dir() and labels.is_dir()):
        return
    label_files = {_stem(path, labels): path for path in volume_files(labels)}
    cases: dict[str, list[Path]] = {}
    for path in volume_files(images):
        stem = _stem(path, images)
        case = _CHANNEL.sub("", stem)
        cases.setdefault(case if stem not in label_files and case in label_files else stem, []).append(path)
    for case, (path, *others) in cases.items():
        name = path.relative_to(images)
        label = label_files.get(case, labels / name)  # one that is not there is reported with its volume
        yield FoundVolume(
            name=str(name),
            files=(str(path),),
            modality=modality,
            annotations={"label": str(label)},
            channels=tuple((str(other),) for other in others),
        )


def _stem(path: Path, root: Path) -> str:
    """The path below the folder, without the suffix."""
    return without_ending(str(path.relative_to(root)))


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
