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

__all__ = ["ReestimateBatchNorm"]

logger = logging.getLogger(__name__)


class ReestimateBatchNorm:
    """Runs `reestimate_batch_norm` on the first training batches when training starts, not when it is resumed.

    Put it after `RunCheckpoint`, which tells the trainer that it is resumed.

    Args:
        network: to be fine-tuned; one without BatchNorm is left alone.
        loader: of training batches with `image`.
        batches: how many to average over; 0 keeps the statistics as they are.
    """

    def __init__(self, *, network: nn.Module, loader: Iterable[dict[str, Any]], batches: int = 100) -> None:
        self.network, self.loader, self.batches = unwrap(network), loader, batches

    def attach(self, engine: Engine) -> None:
        """Registers with the trainer."""
        engine.add_event_handler(Events.STARTED, self)

    def __call__(self, engine: Engine) -> None:
        """Runs it."""
        if self.batches == 0 or engine.state.epoch > 0 or engine.state.iteration > 0:
            return
        images = (batch["image"].to(engine.state.device) for batch in itertools.islice(self.loader, self.batches))
        layers = reestimate_batch_norm(self.network, images)
        if layers:
            logger.info("re-estimated %d BatchNorm layers on %d batches of whole crops", layers, self.batches)
