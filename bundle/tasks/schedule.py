# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""The schedule of a fine-tuning, from its length in epochs."""

from __future__ import annotations

from collections.abc import Sized

from torch.optim import Optimizer

from bundle.runs.steps import training_steps, warmup_steps
from bundle.transfer import FineTuneSchedule

__all__ = ["fine_tune_schedule"]


def fine_tune_schedule(
    optimizer: Optimizer,
    *,
    kind: str,
    loader: Sized,
    epochs: float,
    warmup_epochs: float | None = None,
    decoder_share: float = 0.25,
) -> FineTuneSchedule:
    """A `FineTuneSchedule` that lasts as long as the training.

    Args:
        optimizer: as for `FineTuneSchedule`.
        kind: "full", "sawtooth" or "frozen".
        loader: of the training; its length is the number of steps in an epoch.
        epochs: of the whole training.
        warmup_epochs: of them, to warm up; at most half of them are. None is a tenth of them, and at most 5.
        decoder_share: as for `FineTuneSchedule`.

    Raises:
        UserError: if `kind` is unknown or `decoder_share` is no share.
    """
    return FineTuneSchedule(
        optimizer,
        kind=kind,
        t_total=training_steps(loader, epochs),
        warmup_steps=warmup_steps(loader, warmup_epochs, epochs),
        decoder_share=decoder_share,
    )
