# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""Masks for a batch: one draw per sample, the same on every device and rank layout."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from bundle.cells import valid_cells
from bundle.errors import UserError
from bundle.masking.rules import MaskRule

__all__ = ["BatchMask", "MaskSampler", "make_generator"]

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
        weight_floor: where weights are given, what is added to every cell's mean weight, in units of the sample's
            largest: with 0, cells of no weight are hidden only when no other is left.

    Raises:
        UserError: if `weight_floor` is negative.
    """

    def __init__(self, *, rule: MaskRule, cell: Sequence[int], seed: int = 0, weight_floor: float = 0.1) -> None:
        if weight_floor < 0:
            raise UserError(f"masking#weight_floor {weight_floor} is negative: give 0 or a share such as 0.1")
        self.rule, self.cell, self.seed, self.weight_floor = rule, tuple(cell), seed, weight_floor

    @property
    def mask_ratio(self) -> float | list[float]:
        """The share of blocks that the rule hides, or the two ends of its range: what `model.json` says."""
        low, high = self.rule.ratio
        return low if low == high else [low, high]

    def __call__(
        self,
        valid: Tensor,
        draw: Tensor,
        spacing: Tensor | None = None,
        weight: Tensor | None = None,
        stream: Sequence[int] = (),
    ) -> BatchMask:
        """Masks for a batch.

        Args:
            valid: bool ``[B, 1, D, H, W]`` on voxels, False where the volume was padded.
            draw: int64 ``[B]``, the number of each sample's draw.
            spacing: ``[B, 3]``, voxel size in mm; 1 mm if not given.
            weight: ``[B, 1, D, H, W]`` on voxels, none negative: what is to be hidden more often.
            stream: further numbers that the randomness derives from.
        """
        cells = _at_least_two(valid_cells(valid, self.cell), valid, self.cell)
        weights = None if weight is None else self._cell_weights(weight)
        hidden = torch.zeros_like(cells)
        for sample, number in enumerate(draw.tolist()):
            voxel_mm = [1.0] * 3 if spacing is None else spacing[sample].tolist()
            hidden[sample, 0] = self.rule(
                cells[sample, 0],
                make_generator(self.seed, _MASK_STREAM, number, *stream),
                [mm * voxels for mm, voxels in zip(voxel_mm, self.cell)],
                None if weights is None else weights[sample, 0],
            )
        return BatchMask(visible=cells & ~hidden, hidden=hidden)

    def _cell_weights(self, weight: Tensor) -> Tensor:
        means = F.avg_pool3d(weight.float(), self.cell)
        if (means < 0).any() or not means.isfinite().all():
            raise UserError("a weight map has values below 0 or not finite: give weights from 0 up")
        largest = means.amax(dim=(1, 2, 3, 4), keepdim=True)
        return torch.where(largest > 0, means / largest.clamp(min=1e-30), 0.0) + self.weight_floor


def _at_least_two(cells: Tensor, valid: Tensor, cell: Sequence[int]) -> Tensor:
    """The cells that count as data; where that is less than two, all with any valid voxel, or else all.

    A crop, zoomed while it is augmented, or a child may hold no more of a small volume. It must not end a long run.
    """
    for more in (F.max_pool3d(valid.float(), tuple(cell)) > 0, torch.ones_like(cells)):
        few = cells.flatten(1).sum(1) < 2
        cells = torch.where(few[:, None, None, None, None], more, cells)
    return cells


def make_generator(*numbers: int) -> torch.Generator:
    """A random generator whose state derives from the numbers alone."""
    seed = np.random.SeedSequence(numbers).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(seed[0] >> np.uint64(1)))
