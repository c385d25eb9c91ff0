# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""Finds volumes: in a folder of NIfTI, NRRD or FreeSurfer files, in a tree of DICOM series, or in an MSD-style json."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from bundle.data.dataset_json import (
    PARTS,
    channel_of,
    check_part,
    choose_part,
    first_modality,
    group_named,
    is_neither,
    list_entries,
    modality_named,
    read_json,
)
from bundle.data.dicom import Series, find_dicom, find_series, numbered
from bundle.data.file_parts import SUFFIXES, holds_a_volume
from bundle.data.files import walk_folders
from bundle.data.found_volume import FoundVolume, other_objects
from bundle.data.index.volumes import indexed_volumes
from bundle.data.printable import printable, shortened
from bundle.errors import UserError

__all__ = ["VOLUME_SUFFIXES", "find_listed", "find_volumes", "modality_named", "volume_files"]

VOLUME_SUFFIXES = SUFFIXES
#: kinds of other DICOM files that are named where there is no volume
_MOST_OTHERS = 5
_ARCHIVES = (".zip", ".tar", ".tar.gz", ".tgz", ".7z", ".rar", ".dcm.gz")


def find_volumes(
    dataset_dir: str | os.PathLike[str], part: str = "", *, others: bool = False, where: str = ""
) -> list[FoundVolume]:
    """All volumes of a dataset, sorted by name.

    Args:
        dataset_dir: a folder, searched with its subfolders, or an MSD-style json: lists `training` and, optionally,
            `validation`, of paths or of objects with `image` and optionally `modality` and `group`, whose volumes stay
            on one side of the split; paths are relative to it. Or
            the index of a folder, a file that ends in .sqlite, which `configs/index.yaml` makes.
        part: which lists of a json to take: "training", "validation", "test" or "all"; "": all but `test`; "auto":
            `test` if there is one, else all. A folder has no parts.
        others: whether to list a folder's DICOM objects that are no images of CT or MR, too, as left out, and what
            cannot be opened.
        where: a condition on the columns of an index, such as "modality == 'CT' and slices > 60"; "" takes all volumes.

    Raises:
        UserError: if there is no such folder or file, it holds no volume, the json cannot be used, or a folder is asked
            for a part.
    """
    root, objects = Path(dataset_dir), dict[tuple[Path, str], int]()
    if where and root.suffix != ".sqlite":
        raise UserError(
            f"--where {shortened(where)} needs an index, and --dataset_dir {root} is none: make one with "
            "configs/index.yaml, and give its index.sqlite"
        )
    if (root.is_dir() or root.suffix == ".sqlite") and check_part(part) in PARTS:
        kind = "a folder" if root.is_dir() else "an index"
        raise UserError(f"--part {part} needs a json that lists it, and --dataset_dir {root} is {kind}: give the json")
    if root.is_file() and root.suffix == ".json":
        volumes = _from_json(root, part)
    elif root.is_file() and root.suffix == ".sqlite":
        volumes = indexed_volumes(root, where, others=others)
    elif root.is_dir():
        series, objects = find_dicom(root)
        volumes = [*_image_files(root), *_dicom_series(series, root)]
        if volumes and others:
            volumes += other_objects(objects, root)
    elif root.is_file():
        raise UserError(f"--dataset_dir {root} is a file: give its folder, a json that lists volumes, or an index")
    else:
        volumes = []
    if not volumes:
        _refuse_without_volumes(root, objects)
    return sorted(volumes, key=lambda volume: volume.name)


def _refuse_without_volumes(root: Path, objects: Mapping[tuple[Path, str], int]) -> None:
    """Says what is there instead of volumes: archives, or DICOM files of other kinds, as `find_dicom` counts them."""
    listed = (path.name for _, files in walk_folders(root) for path in files) if root.is_dir() else ()
    if packed := [name for name in listed if name.lower().endswith(_ARCHIVES)]:
        told = f"{len(packed)} archive(s), such as {printable(packed[0])}"
        raise UserError(f"--dataset_dir {root} holds no volume but {told}: unpack them")
    missing = "holds no NIfTI or NRRD file and no DICOM series of CT or MR" if root.exists() else "does not exist"
    if others := [f"{other.left_out[0]} in {other.name}" for other in other_objects(objects, root)]:
        missing += f", but {'; '.join(others[:_MOST_OTHERS])}"
    raise UserError(
        f"--dataset_dir {root} {missing}: give a folder of volumes, or fetch the default ones with "
        '"python scripts/fetch_data.py"'
    )


def volume_files(root: Path) -> list[Path]:
    """The files in a folder and its subfolders that hold one volume each, by their names; hidden ones are left out."""
    files = (path for _, files in walk_folders(root) for path in files)
    return sorted(filter(holds_a_volume, files))


def _image_files(root: Path) -> Iterator[FoundVolume]:
    for path in volume_files(root):
        yield FoundVolume(name=str(path.relative_to(root)), files=(str(path),))


def _dicom_series(found: Sequence[Series], root: Path, prefix: str = "") -> Iterator[FoundVolume]:
    """The series in a folder and below it, named by their path from it after `prefix`."""
    for name, series in numbered(found, root, prefix):
        volume = FoundVolume(name, series.files, modality_named(series.modality), series.group)
        if (reason := series.copied_from(root, prefix)) is not None:
            volume = replace(volume, left_out=reason)
        yield volume


def _from_json(path: Path, part: str) -> list[FoundVolume]:
    volumes: list[FoundVolume] = []
    remedy = "name the volumes as in an MSD dataset.json"
    content = read_json(path)
    for name, own_part, listed in list_entries(path, content, remedy, choose_part(part, content)):
        entry = {"image": listed} if isinstance(listed, str) else listed
        if not isinstance(entry, dict) or not isinstance(entry.get("image"), str):
            raise UserError(
                f"--dataset_dir {path} lists {shortened(entry)} in {name!r}: give a path or {{'image': path}}"
            )
        modality = modality_named(entry.get("modality")) or first_modality(content)
        group = group_named(entry.get("group"))
        found = find_listed(path.parent / entry["image"], entry["image"], modality=modality, part=own_part, group=group)
        if is_neither(channel := str(entry.get("modality") or channel_of(content)[0])):
            told = (
                f"is {printable(channel)} by its list, neither CT nor MR",
                "correct its modality in the list if it is",
            )
            found = [replace(volume, left_out=told) for volume in found]
        volumes += found
    return volumes


def find_listed(
    file: Path,
    name: str,
    *,
    modality: str = "",
    part: str = "",
    group: str = "",
    annotations: Mapping[str, Any] | None = None,
) -> list[FoundVolume]:
    """What an entry of a data list names: a file, or a folder with DICOM series.

    Args:
        file: the entry's file or folder.
        name: what the list calls it.
        modality: as the list says, or "".
        part: as the list says, or "".
        group: as the list says, or "".
        annotations: what the list says of it besides.
    """
    if os.path.normpath(file.absolute()) == file.absolute().anchor:
        raise UserError(f"--dataset_dir lists {name!r}, the root of all folders: name files, or folders of one series")
    entry = FoundVolume(name, (), modality, group, part, annotations or {})
    if not is_folder(file):
        return [replace(entry, files=(str(file),))]
    series = [
        replace(
            entry, name=found.name, files=found.files, modality=modality or found.modality, group=group or found.group
        )
        for found in _dicom_series(find_series(file), file, prefix=name)
    ]
    return series or [entry]  # reading it says what is wrong


def is_folder(path: Path) -> bool:
    """Whether there is such a folder; what cannot be a path, such as a name that is too long, is none."""
    try:
        return path.is_dir()
    except OSError:
        return False
