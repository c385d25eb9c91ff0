# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""How long training lasts, counted in steps, for schedules that act on every step."""

from __future__ import annotations

from collections.abc import Sized

__all__ = ["training_steps"]


def training_steps(loader: Sized, epochs: float) -> int:
    """The number of iterations in `epochs` epochs (0.5 is half of one), at least 1.

    With `LrScheduleHandler(epoch_level=False)` the schedule moves once per iteration, so gradient accumulation does not
    change this number.
    """
    return max(1, round(len(loader) * epochs))
