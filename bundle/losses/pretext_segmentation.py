# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""A segmentation into classes that were made from the scans: an objective beside reconstruction."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bundle.networks import Objective, View

__all__ = ["PretextSegmentation", "on_grid"]


class PretextSegmentation(Objective):
    """Names the class of every voxel of the crops, of the visible ones and of the hidden ones.

    The decoder's last features go through one 1x1x1 convolution, as in the network that will be fine-tuned. A decoder
    that stops at a coarser grid names the class of the voxel in the middle of each of its sites. Children have no
    classes and are left out.

    Args:
        channels: of the decoder's last features.
        classes: how many.
        weight: of the loss in the sum.
        hidden_weight: of the hidden voxels, where a visible one has 1.
        key: of the classes in the batch, ``[B, 1, D, H, W]``.

    Examples:
        >>> import torch
        >>> objective = PretextSegmentation(channels=8, classes=3)
        >>> classes = torch.randint(3, (2, 1, 8, 8, 8))
        >>> hidden = torch.zeros(2, 1, 2, 2, 2, dtype=torch.bool)
        >>> hidden[:, :, 0] = True
        >>> target = {"pretext_class": classes, "valid": torch.ones(2, 1, 8, 8, 8, dtype=torch.bool), "hidden": hidden}
        >>> logits = 20 * torch.nn.functional.one_hot(classes[:, 0], 3).movedim(-1, 1).float()
        >>> loss, terms = objective.loss([logits], target)
        >>> round(loss.item(), 4), terms["pretext_accuracy_hidden"].item()
        (0.0, 1.0)
    """

    def __init__(
        self,
        *,
        channels: int,
        classes: int,
        weight: float = 1.0,
        hidden_weight: float = 1.0,
        key: str = "pretext_class",
    ) -> None:
        super().__init__(heads=ClassHead(channels, classes), weight=weight)
        self.hidden_weight, self.key = hidden_weight, key

    def loss(self, made: Sequence[Tensor], target: dict[str, Any]) -> tuple[Tensor, dict[str, Tensor]]:
        """Cross-entropy of the voxels that are no padding: the mean of each crop, and then over the crops.

        Returns:
            The loss, and its terms: how often the class is right among all voxels, among hidden ones, and if the most
            frequent class of the batch were always named.
        """
        (logits,) = made
        grid = logits.shape[2:]
        classes, valid = (on_grid(target[name], grid)[:, 0] for name in (self.key, "valid"))
        hidden = F.interpolate(target["hidden"].float(), size=grid)[:, 0] > 0
        weight = valid.float() * torch.where(hidden, self.hidden_weight, 1.0)
        each = F.cross_entropy(logits.float(), classes.long(), reduction="none")
        # of each crop by itself: a step in parts, or on several processes, is then the same step
        loss = ((each * weight).flatten(1).sum(1) / weight.flatten(1).sum(1).clamp(min=1e-6)).mean()
        with torch.no_grad():
            right = (logits.argmax(1) == classes).float()
            # sums in place of a count of those picked out, for which a GPU would wait for the host
            counts = each.new_zeros(logits.shape[1], dtype=torch.float64)
            counts.scatter_add_(0, classes.flatten().long(), valid.flatten().double())
            terms = {
                "pretext_accuracy": _mean(right, valid),
                "pretext_accuracy_hidden": _mean(right, valid & hidden),
                "pretext_accuracy_guess": (counts.max() / counts.sum().clamp(min=1)).to(each.dtype),
            }
        return loss, terms


class ClassHead(nn.Module):
    """The decoder's last features of the crops to logits of classes."""

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        self.classes = nn.Conv3d(channels, classes, kernel_size=1)

    def forward(self, views: Sequence[View]) -> list[Tensor]:
        return [self.classes(views[0].decoded)]


def on_grid(voxels: Tensor, grid: Sequence[int]) -> Tensor:
    """Every voxel in the middle of a site of a coarser grid; all of them on a grid of the same size."""
    steps = [size // sites for size, sites in zip(voxels.shape[2:], grid)]
    d, h, w = (slice(step // 2, None, step) for step in steps)
    return voxels[:, :, d, h, w]


def _mean(x: Tensor, where: Tensor) -> Tensor:
    return (x * where).sum() / where.sum().clamp(min=1)
