# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""Alignment across volume levels: a child's features against its parent's at the same place in space."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from bundle.cells import axis_numbers
from bundle.errors import UserError
from bundle.networks.encoders import Level
from bundle.networks.pairs import Pairs, View, make_head
from bundle.sparse import SparseVolume

__all__ = ["VolumeLevelPairs", "sample_at"]


class VolumeLevelPairs(nn.Module):
    """Draws visible sites of the children and looks up their parents' features at the same place, in mm.

    A child lies where its parent was masked, so the encoder has no features of the parent there: the keys are those of
    a teacher that sees the whole parent, interpolated between its sites. (MiM compares with the parent's decoder, and
    its published code with the wrong places; Zhuang et al. 2024, arXiv:2404.15580.)

    Args:
        levels: the encoder's levels, finest first.
        depth: of the encoder whose features are compared; -1 is the coarsest.
        dim: channels of the projections.
        samples: sites per level of children, at most; all visible ones if there are fewer.
        head: "linear" or "mlp".
        predictor: a further "mlp" on the query's side only.
    """

    def __init__(
        self,
        *,
        levels: Sequence[Level],
        depth: int = -1,
        dim: int = 128,
        samples: int = 256,
        head: str = "mlp",
        predictor: bool = True,
    ) -> None:
        super().__init__()
        if not -len(levels) <= depth < len(levels):
            raise UserError(
                f"depth {depth} is no level of the encoder, which has {len(levels)}: set alignment_heads#depth from "
                f"{-len(levels)} to {len(levels) - 1}"
            )
        self.level, self.depth, self.samples = levels[depth], depth, samples
        self.project = make_head(head, self.level.channels, dim)
        self.predict = make_head("mlp", dim, dim) if predictor else nn.Identity()

    def forward(self, views: Sequence[View], teacher: VolumeLevelPairs | None = None) -> list[Pairs]:
        """Pairs for each level of children.

        Args:
            views: the crops, then the children level by level.
            teacher: whose projection makes the keys.

        Raises:
            UserError: in training, without children; always, without a teacher.
        """
        if len(views) < 2 and not self.training:
            return []  # a reconstruction to look at
        if len(views) < 2:
            raise UserError("VolumeLevelPairs needs children: give mask_in_mask#levels at least one level")
        return [self._pair(parent, child, teacher) for parent, child in pairwise(views)]

    def _pair(self, parent: View, child: View, teacher: VolumeLevelPairs | None) -> Pairs:
        if teacher is None or parent.full is None or child.parent is None:
            raise UserError(
                "VolumeLevelPairs needs a teacher, which sees the parent whole: set network_def#teacher_momentum"
            )
        features = child.features[self.depth]
        sites = features.layout.draw_sites(self.samples, features.cell_shape)
        rows = sites[:, 0]
        stride = axis_numbers(child.spacing, self.level.stride)
        position = (
            child.origin[rows] + (sites[:, 1:] + 0.5) * stride * child.spacing[rows]
        )  # mm from the sample's corner
        above = child.parent[rows]
        place = (position - parent.origin[above]) / (parent.spacing[above] * stride) - 0.5  # in sites of the parent's
        key = teacher.project(sample_at(parent.full[self.depth], above, place)).detach()
        query = self.predict(self.project(features.at(sites)))
        return Pairs(query, key, volume=child.volume[rows], position=position)


def sample_at(features: SparseVolume, rows: Tensor, place: Tensor) -> Tensor:
    """``[M, C]``: features at places between sites, trilinear between the sites that exist, in float32.

    Args:
        features: of a level.
        rows: int64 ``[M]``, of the batch.
        place: ``[M, 3]``, in sites on each axis; 0 is the centre of the first.
    """
    size = axis_numbers(place, features.shape[2:])
    place = place.clamp(min=torch.zeros_like(size), max=size - 1)
    low = place.floor()
    share = place - low
    cell_shape, layout = features.cell_shape, features.layout
    total = weights = torch.zeros((), device=place.device)
    for corner in torch.cartesian_prod(*[torch.arange(2, device=place.device)] * 3):
        site = torch.minimum(low + corner, size - 1).long()
        weight = torch.where(corner > 0, share, 1 - share).prod(1)
        cell = torch.div(site, axis_numbers(site, cell_shape), rounding_mode="floor")
        exists = layout.visible[rows, cell[:, 0], cell[:, 1], cell[:, 2]]
        safe = torch.where(exists[:, None], torch.cat([rows[:, None], site], 1), _any_site(features))
        weight = weight * exists
        total = total + weight[:, None] * features.at(safe).float()
        weights = weights + weight
    return (total / weights.clamp(min=1e-6)[:, None]).float()


def _any_site(features: SparseVolume) -> Tensor:
    """int64 ``[1, 4]``, a site that exists: to be read where the weight is zero."""
    cell = features.layout.cells[:1]
    return cell * axis_numbers(cell, [1, *features.cell_shape])
