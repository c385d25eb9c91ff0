# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""Names that are safe to show in a log, a picture or a table, and to make files of below a folder."""

from __future__ import annotations

import os
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path, PurePosixPath
from typing import Any

from bundle.data.find import VOLUME_SUFFIXES
from bundle.data.found_volume import FoundVolume
from bundle.data.names import name_digest, pseudonymous, without_ending
from bundle.data.printable import printable

__all__ = ["cell_text", "inside", "name_results", "result_names", "table_row"]

#: bytes of one part of a path; a file's name, its ending and the random part of a temporary one must fit in 255
_LONGEST = 180
#: how formulas begin in a table that a spreadsheet opens, in wide characters, too
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "\uff1d", "\uff0b", "\uff0d", "\uff20")
#: of what is written; a folder must not have the name of a file
_ENDINGS = (*VOLUME_SUFFIXES, ".png", ".npz", ".csv", ".json")


def table_row(values: Iterable[Any]) -> list[Any]:
    """Cells for `csv.writer`: a text that a spreadsheet would take for a formula gets a quote before it.

    Numbers stay numbers, negative ones too.

    Example:
        >>> table_row(["=1+1", "-scan", "-1.5", -2, "a"])
        ["'=1+1", "'-scan", '-1.5', -2, 'a']
    """
    return [_cell(value) for value in values]


def cell_text(cell: str) -> str:
    """The text that `table_row` was given, without the quote that it has put before one like a formula.

    Example:
        >>> cell_text("'=1+1"), cell_text("'a'")
        ('=1+1', "'a'")
    """
    return cell[1:] if cell.startswith("'") and cell.lstrip("'").startswith(_FORMULA) else cell


def inside(name: str) -> str:
    """A relative path that leads out of no folder, of printable parts that are not too long."""
    parts = PurePosixPath(printable(name).replace("\\", "_")).parts
    kept = [_shortened(part) for part in parts if part not in ("..", "/", "//")]
    folders = [f"{part}_" if part.lower().endswith(_ENDINGS) else part for part in kept[:-1]]
    return str(PurePosixPath(*folders, *kept[-1:])) if kept else "volume"


def result_names(volumes: Sequence[FoundVolume], *, files: Callable[[str], Iterable[Path]]) -> list[str]:
    """For each volume a path below a folder of results, without an ending, unlike all others.

    It is the volume's name without its ending. Names that differ only in what is left out keep it; else they get a
    digest, or a number.

    Args:
        volumes: whose results are to be written.
        files: what will be written under a name; none of it is a file that is read.
    """

    @cache
    def inputs() -> set[str]:  # seconds, where an archive has a million slices
        return {os.path.realpath(file) for volume in volumes for file in _files(volume)}

    def taken(name: str) -> bool:
        return any(os.path.realpath(file) in inputs() for file in files(name))

    names = [inside(without_ending(volume.name)) for volume in volumes]
    names = _changed(names, volumes, lambda volume, _: inside(volume.name))
    names = _changed(names, volumes, lambda volume, name: f"{name} {name_digest(volume.name)}")
    used: set[str] = set()
    for index, name in enumerate(names):
        free, number = name, 1
        while free.lower() in used or taken(free):
            number += 1
            free = f"{name} {number}"
        used.add(free.lower())
        names[index] = free
    return names


def name_results(
    found: Sequence[FoundVolume],
    *,
    hash_names: bool = False,
    files: Callable[[str], Iterable[Path]] = lambda _: (),
    written: Iterable[Path] = (),
) -> list[FoundVolume]:
    """Volumes under the names that their results have, in their order.

    Args:
        found: the volumes.
        hash_names: a digest of each name instead of the name.
        files: as for `result_names`.
        written: results of an earlier run, which are no volumes: their folder may lie among the scans.
    """
    results = {os.path.realpath(file) for file in written}
    found = [volume for volume in found if not volume.files or os.path.realpath(volume.files[0]) not in results]
    if hash_names:
        found = [pseudonymous(volume) for volume in found]
    names = result_names(found, files=files)
    return [replace(volume, name=name) for volume, name in zip(found, names, strict=True)]


def _changed(
    names: Sequence[str], volumes: Sequence[FoundVolume], change: Callable[[FoundVolume, str], str]
) -> list[str]:
    count = Counter(name.lower() for name in names)  # some file systems do not tell cases apart
    return [
        name if count[name.lower()] == 1 else change(volume, name) for volume, name in zip(volumes, names, strict=True)
    ]


def _files(volume: FoundVolume) -> list[str]:
    return [*volume.files, *(file for files in volume.channels for file in files)]


def _shortened(part: str) -> str:
    part = unicodedata.normalize("NFC", part)
    if len(part.encode()) <= _LONGEST:
        return part
    start = part.encode()[: _LONGEST - 17].decode(errors="ignore")
    return f"{start} {name_digest(part)}"


def _cell(value: Any) -> Any:
    if not isinstance(value, str) or not value.lstrip("'").startswith(_FORMULA):  # quoted ones, too: for `cell_text`
        return value
    try:
        float(value)
    except ValueError:
        return f"'{value}"
    return value
