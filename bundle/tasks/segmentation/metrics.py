# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""What MONAI's metric handlers leave out: distances in mm, and a metric for each class."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import torch
from monai.handlers import SurfaceDistance

__all__ = ["SurfaceDistanceInMm"]


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
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message=".*always_return_as_numpy")  # MONAI calls itself so
                self.metric_fn(predicted[None], label[None], spacing=spacing)

    def compute(self) -> float:
        """The mean over volumes and classes, mm."""
        super().compute()
        assert self._engine is not None
        details: torch.Tensor = self._engine.state.metric_details[self._name]
        return float(details[details.isfinite()].mean())
