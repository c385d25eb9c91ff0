# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""The loss of mixed crops: labelled and unlabelled voxels apart, the latter with a weight that grows."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from math import exp

from monai.losses import DeepSupervisionLoss
from torch import Tensor, nn

from bundle.errors import UserError
from bundle.tasks.segmentation.unlabelled.copy_paste import LABELLED, UNLABELLED
from bundle.tasks.segmentation.unlabelled.teacher import MeanTeacher

__all__ = ["RegionLoss", "SigmoidRampUp", "supervise_regions"]


class SigmoidRampUp:
    """The weight of the unlabelled voxels: w exp(-5 (1 - t / T)^2) in step t, w from step T on (arXiv:1703.01780).

    Args:
        teacher: that counts the steps.
        steps: of the optimizer, in the whole training.
        share: of these steps, which are T; 0 begins with the full weight.
        weight: w.

    Raises:
        UserError: if the weight or the share is below 0.
    """

    def __init__(self, *, teacher: MeanTeacher, steps: int, share: float = 1.0, weight: float = 0.5) -> None:
        if weight < 0:
            raise UserError(f"--unlabelled_weight {weight} does not fit: give a number from 0, such as 0.5")
        if share < 0:
            raise UserError("--unlabelled_ramp_up is below 0: give a share of the training, such as 0.4")
        self.teacher, self.steps, self.weight = teacher, share * steps, weight

    def __call__(self) -> float:
        """The weight in this step."""
        left = 1 - min(1.0, self.teacher.steps / self.steps) if self.steps else 0.0
        return self.weight * exp(-5 * left**2)


class RegionLoss(nn.Module):
    """A loss of the labelled voxels, and with a weight the same loss of the unlabelled ones.

    Each part is the given loss of that part's voxels alone, as if they were one volume: what lies elsewhere neither
    counts in a Dice nor in a mean. So the loss must not depend on where voxels lie, and a Dice is taken over the
    batch. A part without voxels has no loss.

    Args:
        loss: of scores ``[1, classes, n, 1, 1]`` and numbers of classes ``[1, 1, n, 1, 1]``.
        weight: gives the weight of the unlabelled part.
    """

    def __init__(self, loss: nn.Module, weight: Callable[[], float]) -> None:
        super().__init__()
        self.loss, self.weight = loss, weight

    def forward(self, input: Tensor, target: Tensor) -> Tensor:  # noqa: A002 - as in MONAI's losses
        """The sum of both parts.

        Args:
            input: scores ``[B, classes, D, H, W]``.
            target: of `CopyPaste`, ``[B, 2, D, H, W]``.
        """
        label, region = target[:, 0], target[:, 1]
        total = input.flatten()[0] * 0  # a gradient, even if no voxel counts
        for number, weight in ((LABELLED, 1.0), (UNLABELLED, self.weight())):
            chosen = region == number
            if weight > 0 and chosen.any():
                total = total + weight * self._part(input, label, chosen)
        return total

    def _part(self, scores: Tensor, label: Tensor, chosen: Tensor) -> Tensor:
        voxels = scores.movedim(1, -1)[chosen]  # [n, classes]
        part: Tensor = self.loss(voxels.T[None, :, :, None, None], label[chosen][None, None, :, None, None])
        return part


def supervise_regions(loss: nn.Module, *, weight: Callable[[], float]) -> nn.Module:
    """The same loss for mixed crops; deep supervision stays what it is.

    Args:
        loss: of one output, or MONAI's `DeepSupervisionLoss` around it.
        weight: gives the weight of the unlabelled part.
    """
    if isinstance(loss, DeepSupervisionLoss):
        deep = deepcopy(loss)
        deep.loss = RegionLoss(deep.loss, weight)
        return deep
    return RegionLoss(loss, weight)
