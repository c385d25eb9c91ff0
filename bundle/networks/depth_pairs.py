# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""Alignment within one volume: one anatomical location at adjacent encoder depths."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bundle.cells import axis_numbers
from bundle.networks.encoders import Level
from bundle.networks.key_queue import KeyQueue
from bundle.networks.pairs import Pairs, View, make_head
from bundle.sparse import SparseVolume

__all__ = ["EncoderDepthPairs"]


class EncoderDepthPairs(nn.Module):
    """Draws visible sites and projects their features at each two adjacent depths of the encoder.

    The query is the finer depth, brought to the coarser one's grid by averaging, the key the coarser depth. Where the
    network has a teacher, its features of the whole volume are the keys, and each two depths make pairs both ways, so
    that every depth's projection is trained as a query. Projections keep the grid and so does averaging, hence both are
    done on the drawn sites alone.

    Args:
        levels: the encoder's levels, finest first.
        dim: channels of the projections.
        samples: sites per pair of depths, at most; all visible ones if there are fewer.
        head: of each depth, "linear" or "mlp".
        predictor: a further "mlp" on the query's side only (BYOL, arXiv:2006.07733); meant for a teacher.
        queue: keys of each level to remember, for `AlignmentLoss` with negatives of the `same_place`; meant for a
            teacher, whose keys change slowly.
    """

    def __init__(
        self,
        *,
        levels: Sequence[Level],
        dim: int = 128,
        samples: int = 256,
        head: str = "linear",
        predictor: bool = False,
        queue: int = 0,
    ) -> None:
        super().__init__()
        self.levels, self.samples = list(levels), samples
        self.project = nn.ModuleList(make_head(head, level.channels, dim) for level in levels)
        # two for each two depths: keys of the coarser one, and of the finer one averaged over the coarser one's sites
        count = 2 * (len(self.levels) - 1) if queue else 0
        self.queues = nn.ModuleList(KeyQueue(queue, dim) for _ in range(count))
        self.predict = nn.ModuleList(make_head("mlp", dim, dim) if predictor else nn.Identity() for _ in self.levels)

    def forward(self, views: Sequence[View], teacher: EncoderDepthPairs | None = None) -> list[Pairs]:
        """Pairs for each two adjacent depths of the crops.

        Args:
            views: of which the first, the crops, is used.
            teacher: whose projections make the keys from the teacher's features.
        """
        depths = range(len(self.levels) - 1)
        return [pair for depth in depths for pair in self._pairs(depth, views[0], teacher)]

    def _pairs(self, depth: int, view: View, teacher: EncoderDepthPairs | None) -> list[Pairs]:
        below = depth + 1
        sites = view.features[below].layout.draw_sites(self.samples, view.features[below].cell_shape)
        stride = axis_numbers(view.spacing, self.levels[below].stride)
        position = (sites[:, 1:] + 0.5) * stride * view.spacing[sites[:, 0]]
        volume = view.volume[sites[:, 0]]

        def projected(heads: EncoderDepthPairs, features: Sequence[SparseVolume], level: int) -> Tensor:
            at_sites = (
                features[level].at(sites) if level == below else average_at(features[level], features[below], sites)
            )
            projection: Tensor = heads.project[level](at_sites)
            return projection

        if teacher is None or view.full is None:
            query = self.predict[depth](projected(self, view.features, depth))
            return [Pairs(query, projected(self, view.features, below), volume, position, self._queue(depth, below))]
        pairs = []
        for level, other in ((depth, below), (below, depth)):
            query = self.predict[level](projected(self, view.features, level))
            key = projected(teacher, view.full, other).detach()
            pairs.append(Pairs(query, key, volume, position, self._queue(depth, other)))
        return pairs

    def _queue(self, depth: int, level: int) -> KeyQueue | None:
        """Of keys of a level, on the sites of the coarser one of two depths."""
        queue = self.queues[2 * depth + level - depth] if len(self.queues) else None
        return cast("KeyQueue | None", queue)


def average_at(fine: SparseVolume, coarse: SparseVolume, sites: Tensor) -> Tensor:
    """``[M, C]``: the finer level's features averaged over each of the given sites of the coarser level."""
    step = [f // c for f, c in zip(fine.cell_shape, coarse.cell_shape)]
    corner = sites * axis_numbers(sites, [1, *step])
    inside = F.pad(torch.cartesian_prod(*(torch.arange(s, device=sites.device) for s in step)), (1, 0))
    children = (corner[:, None] + inside).flatten(0, 1)
    return fine.at(children).view(len(sites), len(inside), -1).mean(1)
