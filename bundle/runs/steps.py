# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""How long a run lasts, counted in steps of the optimizer."""

from __future__ import annotations

import logging
from collections.abc import Sized

__all__ = ["training_steps", "warmup_steps"]

logger = logging.getLogger(__name__)


def training_steps(loader: Sized, epochs: float) -> int:
    """The number of iterations in `epochs` epochs (0.5 is half of one), at least 1.

    With `LrScheduleHandler(epoch_level=False)` the schedule moves once per iteration, so gradient accumulation does not
    change this number.
    """
    return max(1, round(len(loader) * epochs))


def warmup_steps(loader: Sized, epochs: float | None, total_epochs: float) -> int:
    """The number of iterations in `epochs` epochs, at most half of those in `total_epochs`, and at least 1.

    A short run, such as a first look with ``--epochs 2``, would else end before its learning rate is reached. None is
    a tenth of `total_epochs`, and at most 5 epochs.
    """
    if epochs is None:
        return training_steps(loader, min(5.0, 0.1 * total_epochs))
    if epochs <= total_epochs / 2:
        return training_steps(loader, epochs)
    logger.warning(
        "warmup_epochs is %g of %g epochs: warms up for half of them, so that the learning rate is reached",
        epochs,
        total_epochs,
    )
    return training_steps(loader, total_epochs / 2)
