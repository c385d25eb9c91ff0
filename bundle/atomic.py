# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""Files that appear whole or not at all: a kill in the middle of a write leaves the old file as it was."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["free_path", "replace_file"]


@contextmanager
def replace_file(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Gives a temporary path in the folder of `path`, and moves it to `path` when the block ends without an error.

    The folder is made if it is missing. The data is on the disk (fsync) before the name points at it.

    Example:
        >>> with replace_file("run/summary.md") as temporary:
        ...     _ = temporary.write_text("done")
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=path.suffix, dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.chmod(0o644)  # mkstemp makes it readable by its owner only
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def free_path(path: str | os.PathLike[str]) -> Path:
    """`path` itself if nothing is there, else the first free one of `name_2.ext`, `name_3.ext`, ..."""
    path = Path(path)
    candidate, number = path, 2
    while candidate.exists():
        candidate, number = path.with_name(f"{path.stem}_{number}{path.suffix}"), number + 1
    return candidate
