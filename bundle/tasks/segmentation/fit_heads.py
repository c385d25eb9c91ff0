# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""Fits the heads before the first step of fine-tuning."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterable
from typing import Any

from ignite.engine import Engine, Events
from torch import nn

from bundle.errors import UserError
from bundle.runs.distributed import broadcast, unwrap
from bundle.training.accumulation import parts_of_batches
from bundle.transfer import fit_heads

__all__ = ["FitHeads"]

logger = logging.getLogger(__name__)


class FitHeads:
    """Runs `fit_heads` on the first training batches when training starts, not when it is resumed.

    Put it after `RunCheckpoint`, which tells the trainer that it is resumed, and after `ReestimateBatchNorm`.

    Args:
        network: to be fine-tuned.
        loader: of training batches with `image` and `label`.
        loss: of one output; of MONAI's `DeepSupervisionLoss` the one that it wraps.
        batches: how many, of those that an epoch has; 0 leaves the heads at random.
        crops: of a batch, at most: larger ones are taken in parts, and each part counts. None takes them as they are.
        heads_loaded: whether the heads come from a network of the same classes; they are then left as they are.

    Raises:
        UserError: if `batches` is no number of batches.
    """

    def __init__(
        self,
        *,
        network: nn.Module,
        loader: Iterable[dict[str, Any]],
        loss: nn.Module,
        batches: int = 8,
        crops: int | None = None,
        heads_loaded: bool = False,
    ) -> None:
        if not isinstance(batches, int) or batches < 0:
            raise UserError(f"--fit_heads {batches!r} does not fit: give a number of batches, such as 8, or 0")
        self.network, self.loader, self.batches = unwrap(network), loader, 0 if heads_loaded else batches
        self.crops, self.loss = crops, getattr(loss, "loss", loss)

    def attach(self, engine: Engine) -> None:
        """Registers with the trainer."""
        engine.add_event_handler(Events.STARTED, self)

    def __call__(self, engine: Engine) -> None:
        """Runs it."""
        if self.batches == 0 or engine.state.epoch > 0 or engine.state.iteration > 0:
            return
        batches = [
            {key: batch[key].to(engine.state.device) for key in ("image", "label")}
            for batch in itertools.islice(parts_of_batches(self.loader, self.crops), self.batches)
        ]
        for name, (before, after) in fit_heads(self.network, batches, self.loss).items():
            logger.info("fitted %s to the features: loss %.3f before, %.3f after", name, before, after)
        broadcast(self.network)
