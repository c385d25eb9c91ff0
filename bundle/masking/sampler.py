# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""Masks for a batch: one draw per sample, the same on every device and rank layout."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from bundle.masking.rules import MaskRule

__all__ = ["BatchMask", "MaskSampler", "valid_cells"]

#: sets the random stream of masks apart from that of crops, which derives from the same seed and draw
_MASK_STREAM = 1


class BatchMask(NamedTuple):
    """Bool ``[B, 1, d, h, w]`` each, on cells: `visible` to the encoder, `hidden` to be reconstructed.

    Cells that are neither lie in padding: absent from the encoder and from the loss.
    """

    visible: Tensor
    hidden: Tensor


class MaskSampler:
    """Draws a mask for each sample from (seed, number of its draw), nothing else.

    Args:
        rule: which blocks to hide.
        cell: voxels of a cell on each axis: the encoder's total stride.
        seed: the run's seed.
    """

    def __init__(self, *, rule: MaskRule, cell: Sequence[int], seed: int = 0) -> None:
        self.rule, self.cell, self.seed = rule, tuple(cell), seed

    def __call__(self, valid: Tensor, draw: Tensor) -> BatchMask:
        """Masks for a batch.

        Args:
            valid: bool ``[B, 1, D, H, W]`` on voxels, False where the volume was padded.
            draw: int64 ``[B]``, the number of each sample's draw.
        """
        cells = valid_cells(valid, self.cell)
        hidden = torch.zeros_like(cells)
        for sample, number in enumerate(draw.tolist()):
            seed = np.random.SeedSequence((self.seed, _MASK_STREAM, number)).generate_state(1, np.uint64)
            generator = torch.Generator().manual_seed(int(seed[0] >> np.uint64(1)))
            hidden[sample, 0] = self.rule(cells[sample, 0], generator)
        return BatchMask(visible=cells & ~hidden, hidden=hidden)


def valid_cells(valid: Tensor, cell: Sequence[int]) -> Tensor:
    """Which cells have data: at least half as many valid voxels as the sample's fullest cell.

    Args:
        valid: bool ``[B, 1, D, H, W]`` on voxels.
        cell: voxels of a cell on each axis.

    Returns:
        bool ``[B, 1, d, h, w]`` on cells.
    """
    share = F.avg_pool3d(valid.float(), tuple(cell))
    return (share > 0) & (share >= share.amax(dim=(1, 2, 3, 4), keepdim=True) / 2)
