# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""Finds what pre-training and inference take: scans, not the label maps that lie beside them."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

from bundle.data.dataset_json import channel_of, is_neither, modality_named, read_json
from bundle.data.find import find_volumes
from bundle.data.found_volume import FoundVolume
from bundle.data.index.database import indexed_folder, is_index
from bundle.data.label_maps import check_include, is_included, label_map_by_path
from bundle.data.names import without_ending
from bundle.data.printable import printable
from bundle.errors import UserError

__all__ = ["find_scans", "json_channel", "nearest_json"]

#: so many label maps of one kind have a line each in the report; the others are counted
_NAMED = 20


def find_scans(
    dataset_dir: str | os.PathLike[str], include: Sequence[str] | str = (), part: str = "", where: str = ""
) -> list[FoundVolume]:
    """The volumes of a dataset as `bundle.data.find_volumes` finds them, without a folder's label maps.

    Label maps by their path have `left_out`: the reason, for the report. The other files of a folder are marked
    `from_folder`, so that `ReadVolumed` looks at their voxels. What a json lists is taken as it says. In a folder, a
    `dataset.json` above a file says its modality; of nnU-Net's files that of each channel, which stay together.

    Args:
        dataset_dir: as for `find_volumes`.
        include: patterns of paths below the folder, such as "labels/*", that are scans in spite of their looks.
        part: as for `find_volumes`.
        where: as for `find_volumes`.

    Raises:
        UserError: as `find_volumes`; also if a pattern of `include` fits no file.
    """
    patterns, root = check_include(include), Path(dataset_dir)
    if root.name in ("", ".."):  # a series that lies in "." itself has that folder's name
        root = root.resolve()
    volumes = find_volumes(root, part, others=True, where=where)
    if unused := [p for p in patterns if not any(is_included(volume.name, (p,)) for volume in volumes)]:
        raise UserError(
            f'--include "{unused[0]}" fits none of the {len(volumes)} volumes in --dataset_dir {root}: give paths '
            "below it, where * stands for any text"
        )
    if is_index(root):
        root = indexed_folder(root)
    elif not root.is_dir():
        return volumes
    json_above = cache(nearest_json)
    kinds: dict[tuple[str, str], list[FoundVolume]] = {}
    found = []
    for volume in volumes:
        included = is_included(volume.name, patterns)
        if len(volume.files) != 1 or printable(volume.files[0]) != printable(str(root / volume.name)):
            found.append(volume)  # a DICOM series, whose tags tell
        elif not included and (kind := label_map_by_path(volume.name)):
            kinds.setdefault(kind, []).append(volume)
        else:
            modality, case, reason = json_channel(json_above(Path(volume.files[0]).parent, root), volume.name)
            found.append(
                replace(
                    volume,
                    modality=volume.modality or modality,
                    group=volume.group or case,
                    left_out=volume.left_out if volume.left_out[0] else reason,
                    from_folder=not included,
                )
            )
    left_out = [volume for kind, alike in kinds.items() for volume in _left_out(alike, *kind)]
    return sorted([*found, *left_out], key=lambda volume: volume.name)


def _left_out(volumes: Sequence[FoundVolume], reason: str, pattern: str) -> list[FoundVolume]:
    """The first label maps of a kind with the reason; the last one says how many there are more."""
    named = [
        replace(v, left_out=(f"{reason}: no scan", f"if it is a scan, add --include \"['{pattern}']\""))
        for v in volumes[:_NAMED]
    ]
    if more := len(volumes) - len(named):
        reason, remedy = f"{reason}, as do {more} files after it: no scan", named[-1].left_out[1]
        named[-1] = replace(named[-1], left_out=(reason, remedy))
    return named


def json_channel(content: Mapping[str, Any], name: str) -> tuple[str, str, tuple[str, str]]:
    """What a dataset.json says of a file: its modality, its case, and why it is left out with what to do.

    Args:
        content: of the json, or nothing.
        name: the file's path below the dataset's folder.

    Returns:
        "CT", "MR" or "", the path of the case of which the file is one of several channels or "", and two empty texts
        if the file is used.
    """
    channel, case = channel_of(content, without_ending(Path(name).name))
    group = str(Path(name).with_name(case)) if case else ""
    if is_neither(channel):
        return "", group, (f"is {printable(channel)} by its dataset.json, neither CT nor MR", "nothing is to be done")
    return modality_named(channel), group, ("", "")


def nearest_json(folder: Path, root: Path) -> Mapping[str, Any]:
    """The nearest dataset.json, from the folder up to the dataset's; nothing where there is none of a dataset."""
    for place in (folder, *folder.parents):
        if (place / "dataset.json").is_file():
            try:
                return read_json(place / "dataset.json")
            except UserError:  # of another program
                return {}
        if place == root:
            break
    return {}
