# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""Walks through a folder as a user sees it: without what is hidden, and through symbolic links, each folder once."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

__all__ = ["is_locked", "walk_folders"]


def walk_folders(root: Path, locked: list[Path] | None = None) -> Iterator[tuple[Path, list[Path]]]:
    """Every folder at and below `root` with its files, sorted; names that start with a dot are left out.

    Links to folders are followed after the real folders, so that a folder has its real name where it has one. No folder
    comes twice, so that a link to a parent is no endless loop.

    Args:
        root: where to begin.
        locked: gets the folders that cannot be opened, and the links that lead nowhere.
    """
    seen: set[str] = set()
    closed: list[Path] = [] if locked is None else locked

    def refuse(error: OSError) -> None:
        closed.append(Path(error.filename))

    waiting = [root]
    while waiting:
        start = waiting.pop(0)
        for folder, below, names in os.walk(start, onerror=refuse):
            real = str(Path(folder).resolve())
            if real in seen:
                below.clear()
                continue
            seen.add(real)
            below[:] = sorted(name for name in below if not name.startswith("."))
            if not os.access(folder, os.X_OK):  # its names can be listed, and nothing else
                below.clear()
                closed.append(Path(folder))
                continue
            waiting += [Path(folder, name) for name in below if Path(folder, name).is_symlink()]
            shown = [name for name in sorted(names) if not name.startswith(".")]
            modes = [(name, _mode(os.path.join(folder, name))) for name in shown]  # noqa: PTH118 - a Path costs more
            closed += [Path(folder, name) for name, mode in modes if mode is None]
            yield Path(folder), [Path(folder, name) for name, mode in modes if mode is not None and stat.S_ISREG(mode)]


def is_locked(path: Path) -> bool:
    """Whether the user may not read a file that is there."""
    return _mode(path) is not None and not os.access(path, os.R_OK)


def _mode(path: str | Path) -> int | None:
    """What kind of file a path leads to; None for a link that leads nowhere, or where the user may not look."""
    try:
        return os.stat(path).st_mode  # noqa: PTH116 - of a text, too
    except OSError:
        return None
