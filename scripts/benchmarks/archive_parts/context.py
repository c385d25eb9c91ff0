# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""What a part of the benchmark of large archives is given."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

__all__ = ["Context"]


@dataclass(frozen=True)
class Context:
    """The settings of a run.

    Attributes:
        work: an empty folder for what is made on the way; it is removed at the end.
        scale: share of the full size, above 0, up to 1.
        processes: that work at a time.
    """

    work: Path
    scale: float = 1.0
    processes: int = 2
