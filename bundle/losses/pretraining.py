# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""The weighted sum of the pre-training losses."""

from __future__ import annotations

from torch import Tensor, nn

from bundle.losses.alignment import AlignmentLoss
from bundle.losses.reconstruction import ReconstructionLoss
from bundle.networks import PretrainingOutput

__all__ = ["PretrainingLoss"]


class PretrainingLoss(nn.Module):
    """Reconstruction plus `alignment_weight` times alignment; writes every term into the output's `terms`.

    Args:
        reconstruction: of the hidden voxels.
        alignment: between adjacent levels; not computed where the network has no alignment heads.
        alignment_weight: of the alignment in the sum.
    """

    def __init__(
        self, *, reconstruction: ReconstructionLoss, alignment: AlignmentLoss, alignment_weight: float = 0.05
    ) -> None:
        super().__init__()
        self.reconstruction, self.alignment, self.alignment_weight = reconstruction, alignment, alignment_weight

    def forward(self, output: PretrainingOutput, target: dict[str, Tensor]) -> Tensor:
        """The loss of a network output.

        Args:
            output: of the pre-training network.
            target: `image` ``[B, C, D, H, W]``, and bool ``[B, 1, D, H, W]`` `valid` and `foreground`.
        """
        hidden, terms = output["hidden"], output["terms"]
        loss, found = self.reconstruction(
            output["reconstruction"], target["image"], target["valid"], hidden, target["foreground"]
        )
        terms.update(found)
        if output["pairs"]:
            alignment, found = self.alignment(output["pairs"])
            loss = loss + self.alignment_weight * alignment
            terms.update(found)
        terms["mask_ratio"] = hidden.sum() / (hidden | output["visible"]).sum()
        terms["loss"] = loss.detach()
        return loss

    def restore(self, output: PretrainingOutput, target: dict[str, Tensor]) -> Tensor:
        """The reconstruction in the image's own units, ``[B, C, D, H, W]``."""
        image, hidden = target["image"], output["hidden"]
        cell = [s // h for s, h in zip(image.shape[2:], hidden.shape[2:])]
        return self.reconstruction.restore(output["reconstruction"], image, target["valid"], cell)
