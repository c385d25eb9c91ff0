# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""The weighted sum of the pre-training losses."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from bundle.errors import UserError
from bundle.losses.alignment import AlignmentLoss
from bundle.losses.reconstruction import ReconstructionLoss
from bundle.networks import PretrainingOutput

__all__ = ["PretrainingLoss"]


class PretrainingLoss(nn.Module):
    """Reconstruction at every level plus weighted alignment; writes every term into the output's `terms`.

    Args:
        reconstruction: of the hidden voxels.
        alignment: between adjacent levels; not computed where the network has no alignment heads.
        alignment_weight: of the alignment in the sum.
        level_weights: of the reconstruction of the crops, the children, and their children (MiM: 1, 1, 1).

    Attributes:
        warm_up: from 0 to 1, a factor of `alignment_weight`; set by whoever lets the alignment in gradually.
    """

    def __init__(
        self,
        *,
        reconstruction: ReconstructionLoss,
        alignment: AlignmentLoss,
        alignment_weight: float = 0.05,
        level_weights: Sequence[float] = (1.0, 1.0, 1.0),
    ) -> None:
        super().__init__()
        if not level_weights or min(level_weights) < 0 or level_weights[0] <= 0:
            raise UserError(f"level_weights {list(level_weights)} do not fit: the first above 0, none below")
        self.reconstruction, self.alignment = reconstruction, alignment
        self.alignment_weight, self.level_weights = alignment_weight, list(level_weights)
        self.warm_up = 1.0

    def forward(self, output: PretrainingOutput, target: dict[str, Any]) -> Tensor:
        """The loss of a network output.

        Args:
            output: of the pre-training network.
            target: `image` ``[B, C, D, H, W]``, and `clean` alike where the network was given a degraded one; bool
                ``[B, 1, D, H, W]`` `valid` and `foreground`; and `children`, the levels of children that the network
                was given.
        """
        hidden, terms = output["hidden"], output["terms"]
        children = target.get("children", [])
        if len(children) >= len(self.level_weights):
            raise UserError(f"{len(children) + 1} levels, but {len(self.level_weights)} level_weights: one for each")
        loss, found = self.reconstruction(
            output["reconstruction"],
            target.get("clean", target["image"]),
            target["valid"],
            hidden,
            target["foreground"],
        )
        loss = self.level_weights[0] * loss
        terms.update(found)
        for number, (reconstruction, level) in enumerate(zip(output["children"], children, strict=True), 1):
            of_level, found = self.reconstruction(
                reconstruction, level.image, level.valid, level.hidden, level.foreground
            )
            loss = loss + self.level_weights[number] * of_level
            terms.update({f"{name}_level{number + 1}": found[name] for name in ("reconstruction", "zero_predictor")})
        if output["pairs"]:
            alignment, found = self.alignment(output["pairs"])
            loss = loss + self.warm_up * self.alignment_weight * alignment
            terms.update(found)
        terms["mask_ratio"] = hidden.sum() / (hidden | output["visible"]).sum()
        terms["loss"] = loss.detach()
        return loss

    def restore(self, output: PretrainingOutput, target: dict[str, Any]) -> Tensor:
        """The reconstruction in the image's own units, ``[B, C, D, H, W]``."""
        image, hidden = target.get("clean", target["image"]), output["hidden"]
        cell = [s // h for s, h in zip(image.shape[2:], hidden.shape[2:])]
        return self.reconstruction.restore(output["reconstruction"], image, target["valid"], cell)
