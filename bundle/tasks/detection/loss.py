# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""The loss of a detector: classes of anchors, and the boxes of those that match one."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

__all__ = ["DetectionLoss"]


class DetectionLoss(nn.Module):
    """Weighted sum of the two losses that MONAI's detector computes; writes its terms into the output's `terms`.

    Args:
        class_weight: of the loss of the classes (binary cross-entropy).
        box_weight: of the loss of the boxes (smooth L1).
    """

    def __init__(self, *, class_weight: float = 1.0, box_weight: float = 1.0) -> None:
        super().__init__()
        self.class_weight, self.box_weight = class_weight, box_weight

    def forward(self, output: dict[str, Any], target: Any = None) -> Tensor:  # noqa: ARG002 - the detector knew it
        """The sum.

        Args:
            output: what `bundle.tasks.detection.Detector` gives in training mode.
            target: not used.
        """
        classes, boxes = output["classification"].float(), output["box_regression"].float()
        loss: Tensor = self.class_weight * classes + self.box_weight * boxes
        output["terms"].update(loss=loss.detach(), classes=classes.detach(), boxes=boxes.detach())
        return loss
