# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""Walks through a folder as a user sees it: without what is hidden, and through symbolic links, each folder once."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

__all__ = ["is_locked", "scan_folders", "walk_folders"]

#: of a file: its name, its size in bytes, and its time of change in nanoseconds
Stamp = tuple[bytes, int, int]


def walk_folders(root: Path, locked: list[Path] | None = None) -> Iterator[tuple[Path, list[Path]]]:
    """Every folder at and below `root` with its files, sorted; names that start with a dot are left out.

    Links to folders are followed after the real folders, so that a folder has its real name where it has one. No folder
    comes twice, so that a link to a parent is no endless loop.

    Args:
        root: where to begin.
        locked: gets the folders that cannot be opened, and the links that lead nowhere.
    """
    for path, stamps in scan_folders(root, locked):
        folder = Path(os.fsdecode(path))
        yield folder, [folder / name for name in sorted(os.fsdecode(name) for name, *_ in stamps)]


def scan_folders(root: Path, locked: list[Path] | None = None) -> Iterator[tuple[bytes, list[Stamp]]]:
    """As `walk_folders`, with the size and the time of change of each file, unsorted, and without a `Path` for each.

    The system is asked once for each file.

    Args:
        root: where to begin.
        locked: as for `walk_folders`.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from bundle.data.files import scan_folders
        >>> folder = tempfile.TemporaryDirectory()
        >>> Path(folder.name, "scan.nii").write_text("voxels")
        6
        >>> [(name, size) for _, files in scan_folders(Path(folder.name)) for name, size, changed in files]
        [(b'scan.nii', 6)]
    """
    closed: list[Path] = [] if locked is None else locked
    seen: set[bytes] = set()
    links = [os.fsencode(root)]
    while links:
        start = links.pop(0)
        waiting = [(start, os.path.realpath(start))]
        while waiting:
            folder, real = waiting.pop()
            if real in seen:
                continue
            seen.add(real)
            listed = _list(folder, closed)
            if listed is None:
                continue
            below, linked, others = listed
            if not os.access(folder, os.X_OK):  # its names can be listed, and nothing else
                closed.append(Path(os.fsdecode(folder)))
                continue
            # a folder that is no link lies where its parent does, so the system need not be asked for its real path
            waiting += [(os.path.join(folder, name), os.path.join(real, name)) for name in reversed(below)]  # noqa: PTH118
            links += [os.path.join(folder, name) for name in linked]  # noqa: PTH118
            yield folder, list(_stamps(others, closed))


def _list(folder: bytes, closed: list[Path]) -> tuple[list[bytes], list[bytes], list[os.DirEntry[bytes]]] | None:
    """The names of the folders in a folder, those of the links to folders, and what is no folder; None if closed."""
    below: list[bytes] = []
    linked: list[bytes] = []
    others = []
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.name.startswith(b"."):
                    continue
                if not _is_folder(entry):
                    others.append(entry)
                else:
                    (linked if entry.is_symlink() else below).append(entry.name)
    except OSError:
        closed.append(Path(os.fsdecode(folder)))
        return None
    return sorted(below, key=os.fsdecode), sorted(linked, key=os.fsdecode), others


def _is_folder(entry: os.DirEntry[bytes]) -> bool:
    try:
        return entry.is_dir()
    except OSError:
        return False


def _stamps(entries: list[os.DirEntry[bytes]], closed: list[Path]) -> Iterator[Stamp]:
    """The regular files among the entries of a folder."""
    for entry in entries:
        try:
            found = entry.stat()
        except FileNotFoundError:
            if entry.is_symlink():
                closed.append(Path(os.fsdecode(entry.path)))
            continue  # gone since it was listed
        except OSError:  # a link to where the user may not look, or in a circle
            closed.append(Path(os.fsdecode(entry.path)))
            continue
        if stat.S_ISREG(found.st_mode):
            yield entry.name, found.st_size, found.st_mtime_ns


def is_locked(path: Path) -> bool:
    """Whether the user may not read a file that is there."""
    try:
        path.stat()
    except OSError:
        return False
    return not os.access(path, os.R_OK)
