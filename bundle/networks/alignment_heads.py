# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""Projections of one anatomical location's features at adjacent encoder depths, for the alignment loss."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

from torch import Tensor, nn

from bundle.networks.encoders import Level
from bundle.sparse import SparseVolume

__all__ = ["DepthAlignmentHeads", "Pairs"]


@dataclass
class Pairs:
    """Features that should agree: row i of `query` and row i of `key` show the same place.

    Attributes:
        query: ``[N, C]``.
        key: ``[N, C]``.
        volume: int64 ``[N]``, the sample in the batch that the place lies in.
        position: ``[N, 3]``, the place's centre in mm from the crop's corner.
    """

    query: Tensor
    key: Tensor
    volume: Tensor
    position: Tensor


class DepthAlignmentHeads(nn.Module):
    """Draws visible sites and projects their features at each two adjacent depths of the encoder.

    A depth's 1x1x1 projection keeps the grid and is linear, and so is bringing the finer depth to the coarser grid by
    averaging; both are therefore done on the drawn sites alone, with the same numbers at a fraction of the cost.

    Args:
        levels: the encoder's levels, finest first.
        dim: channels of the projections.
        samples: sites per pair of depths, at most; all visible ones if there are fewer.
    """

    def __init__(self, *, levels: Sequence[Level], dim: int = 128, samples: int = 256) -> None:
        super().__init__()
        self.levels, self.samples = list(levels), samples
        self.project = nn.ModuleList(nn.Linear(level.channels, dim, bias=False) for level in levels)

    def forward(self, features: Sequence[SparseVolume], spacing: Tensor) -> list[Pairs]:
        """Pairs for each two adjacent depths.

        Args:
            features: the encoder's, finest first.
            spacing: ``[B, 3]``, voxel size in mm.
        """
        return [self._pair(depth, features[depth], features[depth + 1], spacing) for depth in range(len(features) - 1)]

    def _pair(self, depth: int, fine: SparseVolume, coarse: SparseVolume, spacing: Tensor) -> Pairs:
        sites = coarse.layout.draw_sites(self.samples, coarse.block)
        step = [f // c for f, c in zip(fine.block, coarse.block)]
        corner = sites * sites.new_tensor([1, *step])
        inside = sites.new_tensor([(0, *place) for place in product(*(range(s) for s in step))])
        children = (corner[:, None] + inside).flatten(0, 1)
        averaged = fine.at(children).view(len(sites), len(inside), -1).mean(1)
        stride = spacing.new_tensor(self.levels[depth + 1].stride)
        return Pairs(
            query=self.project[depth](averaged),
            key=self.project[depth + 1](coarse.at(sites)),
            volume=sites[:, 0],
            position=(sites[:, 1:] + 0.5) * stride * spacing[sites[:, 0]],
        )
