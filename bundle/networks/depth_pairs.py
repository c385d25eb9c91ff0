# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""Alignment within one volume: one anatomical location at adjacent encoder depths."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

from torch import Tensor, nn

from bundle.networks.encoders import Level
from bundle.networks.pairs import Pairs, View, make_head
from bundle.sparse import SparseVolume

__all__ = ["EncoderDepthPairs", "plain_depth_pairs"]


class EncoderDepthPairs(nn.Module):
    """Draws visible sites and projects their features at each two adjacent depths of the encoder.

    The query is the finer depth, brought to the coarser one's grid by averaging; the key is the coarser depth: the
    encoder's own, or where the network has a teacher, the teacher's on the whole volume. Projections keep the grid and
    so does averaging, hence both are done on the drawn sites alone.

    Args:
        levels: the encoder's levels, finest first.
        dim: channels of the projections.
        samples: sites per pair of depths, at most; all visible ones if there are fewer.
        head: of each depth, "linear" or "mlp".
        predictor: a further "mlp" on the query's side only (BYOL, arXiv:2006.07733); meant for a teacher.
    """

    def __init__(
        self,
        *,
        levels: Sequence[Level],
        dim: int = 128,
        samples: int = 256,
        head: str = "linear",
        predictor: bool = False,
    ) -> None:
        super().__init__()
        self.levels, self.samples = list(levels), samples
        self.project = nn.ModuleList(make_head(head, level.channels, dim) for level in levels)
        self.predict = nn.ModuleList(
            make_head("mlp", dim, dim) if predictor else nn.Identity() for _ in self.levels[1:]
        )

    def forward(self, views: Sequence[View], teacher: EncoderDepthPairs | None = None) -> list[Pairs]:
        """Pairs for each two adjacent depths of the crops.

        Args:
            views: of which the first, the crops, is used.
            teacher: whose projections make the keys from the teacher's features.
        """
        return [self._pair(depth, views[0], teacher) for depth in range(len(self.levels) - 1)]

    def _pair(self, depth: int, view: View, teacher: EncoderDepthPairs | None) -> Pairs:
        fine, coarse = view.features[depth], view.features[depth + 1]
        sites = coarse.layout.draw_sites(self.samples, coarse.block)
        query = self.predict[depth](self.project[depth](average_at(fine, coarse, sites)))
        if teacher is None or view.full is None:
            key = self.project[depth + 1](coarse.at(sites))
        else:
            key = teacher.project[depth + 1](view.full[depth + 1].at(sites)).detach()
        stride = view.spacing.new_tensor(self.levels[depth + 1].stride)
        position = (sites[:, 1:] + 0.5) * stride * view.spacing[sites[:, 0]]
        return Pairs(query, key, volume=view.volume[sites[:, 0]], position=position)


def plain_depth_pairs(levels: Sequence[Level]) -> EncoderDepthPairs:
    """The plain form: linear projections to 128 channels, 256 sites, no predictor, for use without a teacher."""
    return EncoderDepthPairs(levels=levels)


def average_at(fine: SparseVolume, coarse: SparseVolume, sites: Tensor) -> Tensor:
    """``[M, C]``: the finer level's features averaged over each of the given sites of the coarser level."""
    step = [f // c for f, c in zip(fine.block, coarse.block)]
    corner = sites * sites.new_tensor([1, *step])
    inside = sites.new_tensor([(0, *place) for place in product(*(range(s) for s in step))])
    children = (corner[:, None] + inside).flatten(0, 1)
    return fine.at(children).view(len(sites), len(inside), -1).mean(1)
