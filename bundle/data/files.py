# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""Walks through a folder as a user sees it: without what is hidden, and through symbolic links, each folder once."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from pathlib import Path

__all__ = ["walk_folders"]

logger = logging.getLogger(__name__)


def walk_folders(root: Path) -> Iterator[tuple[Path, list[Path]]]:
    """Every folder at and below `root` with its files, sorted; names that start with a dot are left out.

    Links to folders are followed after the real folders, so that a folder has its real name where it has one. No folder
    comes twice, so that a link to a parent is no endless loop. What cannot be opened is counted in one warning.
    """
    seen: set[str] = set()
    locked: list[OSError] = []
    waiting = [root]
    while waiting:
        start = waiting.pop(0)
        for folder, below, names in os.walk(start, onerror=locked.append):
            real = str(Path(folder).resolve())
            if real in seen:
                below.clear()
                continue
            seen.add(real)
            below[:] = sorted(name for name in below if not name.startswith("."))
            waiting += [Path(folder, name) for name in below if Path(folder, name).is_symlink()]
            yield Path(folder), [path for path in _visible(folder, names) if path.is_file()]
    if locked:
        logger.warning("left out %d folder(s) that cannot be opened: correct their permissions", len(locked))


def _visible(folder: str, names: list[str]) -> list[Path]:
    return [Path(folder, name) for name in sorted(names) if not name.startswith(".")]
