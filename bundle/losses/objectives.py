# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""The two objectives that the bundle itself has. The network has their heads: its decoder and its alignment heads."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from bundle.errors import UserError
from bundle.losses.alignment import AlignmentLoss
from bundle.losses.reconstruction import ReconstructionLoss
from bundle.networks import Objective, Pairs

__all__ = ["Alignment", "Reconstruction"]


class Reconstruction(Objective):
    """The hidden voxels of the crops, and of the children level by level.

    Args:
        voxels: the loss of one level.
        level_weights: of the crops, the children, and their children. The first is the objective's weight.

    Raises:
        UserError: if the first weight is not above 0, or another one is below.
    """

    def __init__(self, *, voxels: ReconstructionLoss, level_weights: Sequence[float] = (0.1, 0.1, 0.1)) -> None:
        if not level_weights or min(level_weights) < 0 or level_weights[0] <= 0:
            raise UserError(f"level_weights {list(level_weights)} do not fit: the first above 0, none below")
        super().__init__(weight=level_weights[0])
        self.voxels, self.level_weights = voxels, [weight / level_weights[0] for weight in level_weights]

    def loss(self, made: Sequence[Tensor], target: dict[str, Any]) -> tuple[Tensor, dict[str, Tensor]]:
        """The sum over the levels, the crops' with weight 1; terms of the children's end in "_level2" and "_level3"."""
        if len(made) > len(self.level_weights):
            raise UserError(f"{len(made)} levels, but {len(self.level_weights)} level_weights: one for each")
        crops, *rest = made
        totals = target.get("hidden_totals", [None] * len(made))
        image = target.get("clean", target["image"])
        loss, terms = self.voxels(
            crops, image, target["valid"], target["hidden"], target["foreground"], total=totals[0]
        )
        for number, (reconstruction, level) in enumerate(zip(rest, target["children"], strict=True), 1):
            found, metrics = self.voxels(
                reconstruction, level.clean, level.valid, level.hidden, level.foreground, total=totals[number]
            )
            loss = loss + self.level_weights[number] * found
            terms |= {f"{name}_level{number + 1}": metrics[name] for name in ("reconstruction", "zero_predictor")}
        return loss, terms

    def share_step(self, targets: Sequence[dict[str, Any]], shares: Sequence[float]) -> list[dict[str, Any]]:
        """Counts the voxels of every level in the whole step: each of them counts alike, whatever part it is in."""
        levels = [[(target["valid"], target["hidden"]) for target in targets]]
        children = zip(*(target["children"] for target in targets), strict=True)
        levels += [[(level.valid, level.hidden) for level in parts] for parts in children]
        totals = torch.stack([self.voxels.count(parts) for parts in levels]).clamp(min=1)
        return [{"hidden_totals": list(totals * share)} for share in shares]


class Alignment(Objective):
    """Features of one place agree at two depths of the encoder, or at two levels of volumes.

    Args:
        pairs: the loss of pairs of features.
        weight: of the loss in the sum.
    """

    def __init__(self, *, pairs: AlignmentLoss, weight: float = 0.05) -> None:
        super().__init__(weight=weight)
        self.pairs = pairs

    def loss(self, made: Sequence[Pairs], target: dict[str, Any]) -> tuple[Tensor, dict[str, Tensor]]:
        """The mean over the pairs of depths or levels."""
        found: tuple[Tensor, dict[str, Tensor]] = self.pairs(made, target)
        return found
