# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""A metric of each class by itself."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from ignite.engine import Engine, Events

__all__ = ["PerClass"]


class PerClass:
    """Splits a metric into one per class, the mean over the volumes that have the class.

    Args:
        metric: name of a metric handler that ran before, which keeps its details, as MONAI's do.
        classes: their names, in the order of their channels without the background.
        name: the metrics become "<name>/<class>".
    """

    def __init__(self, *, metric: str, classes: Sequence[str], name: str) -> None:
        self.metric, self.classes, self.name = metric, tuple(classes), name

    def attach(self, engine: Engine) -> None:
        """Registers with the evaluator; put it after the metric's handler."""
        engine.add_event_handler(Events.EPOCH_COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        """Adds the metrics to the engine's metrics."""
        details: torch.Tensor = engine.state.metric_details[self.metric]  # [volumes, classes], NaN where absent
        finite = torch.where(details.isfinite(), details, torch.nan)
        for channel, label in enumerate(self.classes):
            value = float(finite[:, channel].nanmean())
            if not math.isnan(value):  # a class that no volume has gets no metric
                engine.state.metrics[f"{self.name}/{label}"] = value
