# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""Re-estimates BatchNorm's statistics before fine-tuning starts."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterable
from typing import Any

from ignite.engine import Engine, Events
from torch import nn

from bundle.networks import reestimate_batch_norm
from bundle.runs.distributed import unwrap
from bundle.training.accumulation import parts_of_batches

__all__ = ["ReestimateBatchNorm"]

logger = logging.getLogger(__name__)


class ReestimateBatchNorm:
    """Runs `reestimate_batch_norm` on the first training batches when training starts, not when it is resumed.

    Put it after `RunCheckpoint`, which tells the trainer that it is resumed.

    Args:
        network: to be fine-tuned; one without BatchNorm is left alone.
        loader: of training batches with `image`.
        batches: how many to average over; 0 keeps the statistics as they are.
        crops: of a batch, at most: larger ones are taken in parts, and each part counts. None takes them as they are.
    """

    def __init__(
        self, *, network: nn.Module, loader: Iterable[dict[str, Any]], batches: int = 100, crops: int | None = None
    ) -> None:
        self.network, self.loader, self.batches, self.crops = unwrap(network), loader, batches, crops

    def attach(self, engine: Engine) -> None:
        """Registers with the trainer."""
        engine.add_event_handler(Events.STARTED, self)

    def __call__(self, engine: Engine) -> None:
        """Runs it."""
        if self.batches == 0 or engine.state.epoch > 0 or engine.state.iteration > 0:
            return
        parts = parts_of_batches(self.loader, self.crops)
        images = (part["image"].to(engine.state.device) for part in itertools.islice(parts, self.batches))
        layers = reestimate_batch_norm(self.network, images)
        if layers:
            logger.info("re-estimated %d BatchNorm layers on %d batches of whole crops", layers, self.batches)
