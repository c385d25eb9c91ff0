# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""How long a run lasts, counted in steps of the optimizer, and how many crops a step takes."""

from __future__ import annotations

import logging
from collections.abc import Sized

from bundle.errors import UserError
from bundle.ranks import world_size

__all__ = ["crops_per_process", "training_steps", "warmup_steps"]

logger = logging.getLogger(__name__)


def training_steps(loader: Sized, epochs: float) -> int:
    """The number of iterations in `epochs` epochs (0.5 is half of one), at least 1.

    An iteration is one step of the optimizer, also where its batch is taken in parts (`bundle.training.Accumulate`).
    """
    return max(1, round(len(loader) * epochs))


def crops_per_process(*, batch_size: int, global_batch: int | None = None) -> int:
    """The crops that this process takes in each step of the optimizer.

    Args:
        batch_size: crops that a process takes at a time.
        global_batch: crops per step of all processes together, so that a step stays the same whatever their number;
            None is `batch_size` of each.

    Raises:
        UserError: if the crops do not go round the processes evenly.

    Examples:
        >>> crops_per_process(batch_size=2), crops_per_process(batch_size=2, global_batch=16)
        (2, 16)
    """
    if global_batch is None:
        return batch_size
    world = world_size()
    if global_batch % world:
        raise UserError(
            f"--global_batch {global_batch} does not go round {world} processes evenly: give a multiple of {world}, or "
            "start another number of processes"
        )
    return global_batch // world


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
