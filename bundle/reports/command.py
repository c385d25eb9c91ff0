# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""The command that started this process, as its user typed it."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

__all__ = ["command_line"]

_LONGEST = 2000  # characters: a program given with -c may be long


def command_line(arguments: Sequence[str] | None = None, executable: str | None = None) -> str:
    """The command, with quotes where a shell needs them.

    Python's own path is left out, and that of a command installed beside it: the user typed a name. So no path is shown
    but those that the user gave.

    Args:
        arguments: of the process, Python first; None: of this one.
        executable: Python's path; None: of this process.

    Example:
        >>> command_line(["/home/ann/.venv/bin/python3", "-m", "monai.bundle", "run", "--epochs", "5"])
        'python -m monai.bundle run --epochs 5'
    """
    _, *rest = sys.orig_argv if arguments is None else arguments
    beside = Path(sys.executable if executable is None else executable).parent
    words = ["python", *rest]
    if rest and Path(rest[0]).is_absolute() and Path(rest[0]).parent == beside:
        words = [Path(rest[0]).name, *rest[1:]]
    elif any("ipykernel" in word for word in rest):
        words = ["(in", "a", "notebook)"]  # its arguments are files of the machine's, which nobody typed
        return " ".join(words)
    line = shlex.join(words)
    return line if len(line) <= _LONGEST else f"{line[:_LONGEST]}..."
