# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""What MONAI's metric handlers leave out: distances in mm, and a figure for each class."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from ignite.engine import Engine, Events
from monai.handlers import SurfaceDistance

__all__ = ["PerClass", "SurfaceDistanceInMm"]


class SurfaceDistanceInMm(SurfaceDistance):
    """MONAI's average surface distance with the spacing of each volume, where MONAI's own counts voxels.

    The mean is over the classes of each volume that both the prediction and the label map have, where MONAI's is
    infinite as soon as one was missed: Dice counts those. It is NaN if there is no such class at all.
    """

    def update(self, output: Sequence[torch.Tensor]) -> None:
        """Adds a batch.

        Args:
            output: prediction and label, one-hot.
        """
        y_pred, y = output
        assert self._engine is not None  # attach() sets it
        batch: Any = self._engine.state.batch
        items = batch if isinstance(batch, list) else [batch]
        spacings = torch.cat([torch.as_tensor(item["spacing"]).reshape(-1, 3) for item in items]).tolist()
        for predicted, label, spacing in zip(y_pred, y, spacings, strict=True):  # one by one: sizes may differ
            self.metric_fn(predicted[None], label[None], spacing=spacing)

    def compute(self) -> float:
        """The mean over volumes and classes, mm."""
        super().compute()
        assert self._engine is not None
        details: torch.Tensor = self._engine.state.metric_details[self._name]
        return float(details[details.isfinite()].mean())


class PerClass:
    """Splits a metric into one figure per class, the mean over the volumes that have the class.

    Args:
        metric: name of a metric handler that ran before, which keeps its details, as MONAI's do.
        classes: their names, in the order of their channels without the background.
        name: the figures become "<name>/<class>".
    """

    def __init__(self, *, metric: str, classes: Sequence[str], name: str) -> None:
        self.metric, self.classes, self.name = metric, tuple(classes), name

    def attach(self, engine: Engine) -> None:
        """Registers with the evaluator; put it after the metric's handler."""
        engine.add_event_handler(Events.EPOCH_COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        """Adds the figures to the engine's metrics."""
        details: torch.Tensor = engine.state.metric_details[self.metric]  # [volumes, classes], NaN where absent
        finite = torch.where(details.isfinite(), details, torch.nan)
        for channel, label in enumerate(self.classes):
            value = float(finite[:, channel].nanmean())
            if not math.isnan(value):  # a class that no volume has gets no figure
                engine.state.metrics[f"{self.name}/{label}"] = value
