# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""From a batch of crops with boxes to what a detector is called with."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from bundle.tasks.detection.boxes import as_targets

__all__ = ["BoxBatch"]


class BoxBatch:
    """`prepare_batch` of MONAI's trainer and evaluator for detection.

    Args:
        training: True hands the targets to the detector, which computes the losses; False has it look at the whole
            volume with its sliding window.
    """

    def __init__(self, *, training: bool) -> None:
        self.training = training

    def __call__(
        self, batch: dict[str, Any], device: torch.device | str | None = None, non_blocking: bool = False, **to: Any
    ) -> tuple[Tensor, list[dict[str, Tensor]], tuple[()], dict[str, Any]]:
        """Moves a batch to `device`.

        Args:
            batch: `image` float ``[B, 1, D, H, W]``, and lists of B tensors `box` and `label`.
            device: where the network runs.
            non_blocking: copy while computing, for pinned memory.
            to: further arguments of `torch.Tensor.to`, for the image.

        Returns:
            The image, the targets, no positional and one keyword argument of the detector.
        """
        image = batch["image"].to(device=device, non_blocking=non_blocking, **to)
        targets = as_targets(batch["box"], batch["label"], device=device, non_blocking=non_blocking)
        return image, targets, (), {"targets": targets} if self.training else {"use_inferer": True}
