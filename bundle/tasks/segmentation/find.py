# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""Finds volumes with label maps."""

from __future__ import annotations

import logging
import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

from bundle.data.dataset_json import PARTS, check_part, modality_named, read_json
from bundle.data.find import volume_files
from bundle.data.found_volume import FoundVolume
from bundle.data.label_maps import label_map_by_path
from bundle.data.lists import find_labelled, first_modality, structure_files
from bundle.data.names import without_ending
from bundle.errors import UserError
from bundle.tasks.segmentation.beside import LABEL_WORD, find_beside, log_once

__all__ = ["find_segmentations"]

_LAYOUTS = (("imagesTr", "labelsTr"), ("images", "labels"))
_TEST_LAYOUT = ("imagesTs", "labelsTs")
_MASKS = "segmentations"
_CHANNEL = re.compile(r"_\d{4}$")  # nnU-Net's number of the channel


def find_segmentations(dataset_dir: str | os.PathLike[str], part: str = "") -> list[FoundVolume]:
    """Volumes with a label map each.

    Several images of one grid (T1, T2, ...) are the channels of one volume: an `image` that lists their files, or
    nnU-Net's files `<case>_0000`, `<case>_0001`, ...

    Args:
        dataset_dir: an MSD-style json (`training`, and optionally `validation`, list objects with `image` and `label`,
            relative to it), a folder that holds such a `dataset.json`, or a folder with `imagesTr` and `labelsTr` (or
            `images` and `labels`) in which a volume and its label map have one name, nnU-Net's number and a word such
            as `_seg` behind the label map's apart, or a folder as TotalSegmentator's data set, of cases that hold one
            volume and the folder `segmentations`, or a folder with label maps beside the volumes, see `find_beside`.
        part: "training", "validation", "test" or "all"; "": all but the test part, for a training; "auto": the test
            part if there is one with label maps, else all. In folders, `imagesTs` and `labelsTs` are the test part.

    Returns:
        Volumes whose annotations hold under `label` the file of the map, or the file of each structure's mask by its
        name, sorted by name.

    Raises:
        UserError: if nothing is found, or the list cannot be used.
    """
    root = Path(dataset_dir)
    if not root.exists():
        raise UserError(f"--dataset_dir {root} does not exist: give the folder or the json of labelled volumes")
    listed = root / "dataset.json" if (root / "dataset.json").is_file() else root
    # nnU-Net has a dataset.json, too, which lists no volumes
    if listed.is_file() and (listed == root or "training" in read_json(listed)):
        volumes = find_labelled(listed, ("label",), part)
    else:
        modality = first_modality(read_json(listed)) if listed.is_file() else ""
        volumes = _from_folders(root, modality, part)
    if not volumes and part in PARTS:
        raise UserError(f"--dataset_dir {root} has no part {part!r} with label maps: list it in a json, or --part all")
    if not volumes:
        raise UserError(
            f"--dataset_dir {root} holds no labelled volumes: give an MSD-style dataset.json with training: "
            "[{image, label}], a folder with imagesTr and labelsTr (or images and labels), one of cases with a volume "
            "and segmentations/, or one with a.nii.gz beside a_seg.nii.gz"
        )
    return sorted(volumes, key=lambda volume: volume.name)


def _from_folders(root: Path, modality: str, part: str) -> list[FoundVolume]:
    """The volumes of `part`; folders tell the test part only."""
    if check_part(part) == "validation":
        return []
    images, labels = _TEST_LAYOUT
    test: list[FoundVolume] = []
    if part in ("test", "auto", "all"):
        pairs = _pairs(root / images, root / labels, modality)
        test = [replace(pair, part="test") for pair in pairs if Path(pair.annotations["label"]).is_file()]
    if part == "test" or (part == "auto" and test):
        return test
    volumes = [pair for images, labels in _LAYOUTS for pair in _pairs(root / images, root / labels, modality)]
    return [*(volumes or list(_cases(root, modality)) or find_beside(root, modality)), *test]


def _pairs(images: Path, labels: Path, modality: str) -> Iterator[FoundVolume]:
    if not (images.is_dir() and labels.is_dir()):
        return
    label_files = _by_stem(labels)
    label_files = {**_without_words(label_files), **label_files}
    _by_stem(images)
    cases: dict[str, list[Path]] = {}
    for path in volume_files(images):
        stem = _stem(path, images)
        case = _CHANNEL.sub("", stem)
        cases.setdefault(case if stem not in label_files and case in label_files else stem, []).append(path)
    unused = {*label_files.values()} - {label_files[case] for case in cases if case in label_files}
    if unused:
        text = f"{len(unused)} label maps in {labels.name} have no image of their name: they are not used"
        log_once(logging.WARNING, labels, text)
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


def _cases(root: Path, modality: str) -> Iterator[FoundVolume]:
    """TotalSegmentator's layout: <case>/ct.nii.gz or mri.nii.gz, and <case>/segmentations/<structure>.nii.gz."""
    for masks in sorted(root.glob(f"*/{_MASKS}")):
        case = masks.parent
        images = [path for path in volume_files(case) if path.parent == case and label_map_by_path(path.name) is None]
        if len(images) != 1:
            raise UserError(f"{case} holds {len(images)} volumes beside {_MASKS}/: keep one there")
        (image,) = images
        named = modality_named(without_ending(image.name))
        yield FoundVolume(
            name=str(image.relative_to(root)),
            files=(str(image),),
            modality=modality or named,
            annotations={"label": structure_files(masks)},
        )


def _by_stem(folder: Path) -> dict[str, Path]:
    """The volumes of a folder by their paths below it without an ending."""
    found: dict[str, Path] = {}
    for path in volume_files(folder):
        first = found.setdefault(_stem(path, folder), path)
        if first != path:
            raise UserError(f"{folder} holds {first.name} and {path.name}, which have one name: keep one of them there")
    return found


def _without_words(files: Mapping[str, Path]) -> dict[str, Path]:
    """Label maps by their names without a word such as `_seg`, where one alone has the name."""
    short = {stem: LABEL_WORD.sub("", stem) for stem in files}
    count = Counter(short.values())
    return {short[stem]: path for stem, path in files.items() if count[short[stem]] == 1}


def _stem(path: Path, root: Path) -> str:
    """The path below the folder, without the suffix."""
    return without_ending(str(path.relative_to(root)))
