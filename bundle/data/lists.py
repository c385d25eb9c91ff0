# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""Finds the labelled volumes that the json of a dataset lists."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from bundle.data.dataset_json import (
    PARTS,
    choose_part,
    first_modality,
    group_named,
    list_entries,
    modality_named,
    read_json,
)
from bundle.data.find import find_listed, is_folder, volume_files
from bundle.data.found_volume import FoundVolume
from bundle.data.names import without_ending
from bundle.data.printable import shortened
from bundle.errors import UserError

__all__ = ["find_labelled", "find_unlabelled", "first_modality", "structure_files"]


def find_labelled(listed: Path, wanted: tuple[str, ...], part: str = "") -> list[FoundVolume]:
    """The volumes that a json lists under `training` and `validation`, or under `test`.

    Args:
        listed: the json; paths in it are relative to its folder.
        wanted: keys that every entry must have beside `image`; they become the volume's annotations.
        part: "training", "validation", "test" or "all"; "": all but `test`; "auto": `test` if it has what is wanted,
            else all.

    Raises:
        UserError: if the list cannot be used.
    """
    content = read_json(listed)
    remedy = f"list objects with image, {', '.join(wanted)}"
    volumes: list[FoundVolume] = []
    part = choose_part(part, content, ("image", *wanted))
    if part == "all" and choose_part("auto", content, ("image", *wanted)) != "test":
        part = ""  # images without labels, as in the MSD
    for name, own_part, entry in list_entries(listed, content, remedy, part):
        if not isinstance(entry, Mapping) or any(key not in entry for key in ("image", *wanted)):
            raise UserError(
                f"{listed} lists {shortened(entry)} in {name!r}: give objects with image, {', '.join(wanted)}"
            )
        annotations: dict[str, Any] = {key: entry[key] for key in wanted}
        if wanted == ("label",):
            annotations["label"] = _label_files(entry["label"], listed)
        volumes += _entry_volumes(listed, content, own_part, entry, annotations)
    return volumes


def find_unlabelled(listed: Path, part: str = "all") -> list[FoundVolume]:
    """The volumes that a json lists, whatever it says of labels.

    Args:
        listed: the json; paths in it are relative to its folder. An entry is a path, a list of paths (channels), or an
            object with `image`.
        part: training, validation, test or all; "auto": `test` if the json has such a list, else all.

    Raises:
        UserError: if it lists none, or an entry names no image.
    """
    content = read_json(listed)
    chosen = choose_part(part, content)
    names = PARTS if chosen == "all" else (chosen,)
    volumes: list[FoundVolume] = []
    for name in names:
        entries = content.get(name) or []
        for given in entries if isinstance(entries, list) else [entries]:
            entry = given if isinstance(given, Mapping) else {"image": given}
            if "image" not in entry:
                raise UserError(f"{listed} lists {shortened(given)} in {name!r}: give a path or {{'image': path}}")
            volumes += _entry_volumes(listed, content, name, entry, {})
    if not volumes:
        raise UserError(f"{listed} lists no volume: list paths, or objects with image, under {' or '.join(names)}")
    return volumes


def _entry_volumes(
    listed: Path, content: Mapping[str, Any], part: str, entry: Mapping[str, Any], annotations: Mapping[str, Any]
) -> list[FoundVolume]:
    """The volume of an entry with its channels, or the volumes of a folder with several DICOM series."""
    image, *others = _paths(entry["image"], listed)
    channels = [find_listed(listed.parent / other, other)[0].files for other in others]
    found = find_listed(
        listed.parent / image,
        image,
        modality=modality_named(entry.get("modality")) or first_modality(content),
        part=part,
        group=group_named(entry.get("group")),
        annotations=annotations,
    )
    return [replace(volume, channels=tuple(channels)) for volume in found]


def _label_files(value: object, listed: Path) -> str | dict[str, str]:
    """The file of a label map, or the file of each structure by its name."""
    if isinstance(value, Mapping):
        files = {str(name): str(listed.parent / _paths(file, listed)[0]) for name, file in value.items()}
        if not files or not all(isinstance(file, str) for file in value.values()):
            raise UserError(
                f"{listed} lists {shortened(value)} as labels: give one file for each class, by the class's name"
            )
        return files
    first, *others = _paths(value, listed)
    if others:
        raise UserError(
            f"{listed} lists {len(others) + 1} label maps for one volume, the first {shortened(first)}: give one map, "
            'a folder of masks that are named after the classes, or an object such as {"liver": "liver.nii.gz"}'
        )
    path = listed.parent / first
    return structure_files(path) if is_folder(path) else str(path)


def structure_files(folder: Path) -> dict[str, str]:
    """The masks of a folder by the names of their structures, as TotalSegmentator writes them."""
    found: dict[str, str] = {}
    for path in volume_files(folder):
        first = found.setdefault(without_ending(str(path.relative_to(folder))), str(path))
        if first != str(path):
            names = f"{Path(first).name} and {path.name}"
            raise UserError(f"{folder} holds {names}, which have one name: keep one of them there")
    return found


def _paths(value: object, listed: Path) -> list[str]:
    paths = [value] if isinstance(value, str) else value
    if not isinstance(paths, list) or not paths or not all(isinstance(path, str) for path in paths):
        raise UserError(
            f"{listed} lists {shortened(value)} where a path belongs: give one, or a list of them as channels"
        )
    return paths
