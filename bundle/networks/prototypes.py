# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""Prototypes of what a decoder makes: how similar drawn places are to each, by the student and by its teacher."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bundle.errors import UserError
from bundle.networks.pairs import View, make_head

__all__ = ["PlacePrototypes", "PrototypeHeads"]


@dataclass
class PlacePrototypes:
    """Drawn places of one level of the decoder, and how similar they are to each of its prototypes.

    Attributes:
        student: cosines ``[B, N, K]``.
        teacher: the same from the teacher's features, heads and prototypes, without gradient.
        places: int64 ``[B, N]``, the number of the site in the level's grid, row by row.
        grid: sites of the level on each axis.
        centre: ``[K]``, the mean that the teacher's cosines had in training; a part of the heads' state.
    """

    student: Tensor
    teacher: Tensor
    places: Tensor
    grid: tuple[int, int, int]
    centre: Tensor


class PrototypeHeads(nn.Module):
    """A projection and prototypes for each of the decoder's finest levels.

    Places are drawn, because the projection of all voxels would cost as much as the decoder. Every crop has as many
    places, and student and teacher are asked about the same ones.

    Args:
        channels: of what the decoder makes at these levels, finest first.
        prototypes: how many at each level.
        dim: channels of the projections.
        samples: places per crop and level, at most; all sites of a level that has fewer.

    Raises:
        UserError: for less than two prototypes, or no level.
    """

    def __init__(self, *, channels: Sequence[int], prototypes: int = 128, dim: int = 64, samples: int = 4096) -> None:
        super().__init__()
        if prototypes < 2 or not channels or samples < 1:
            raise UserError(
                f"{prototypes} prototypes at {len(channels)} levels of a decoder and {samples} samples cannot be: give "
                "at least two prototypes, one level and one sample"
            )
        self.samples = samples
        self.project = nn.ModuleList(make_head("mlp", width, dim) for width in channels)
        self.prototypes = nn.ParameterList(nn.init.normal_(torch.empty(prototypes, dim)) for _ in channels)
        self.register_buffer("centre", torch.zeros(len(channels), prototypes))

    centre: Tensor

    def forward(self, views: Sequence[View], teacher: PrototypeHeads) -> list[PlacePrototypes]:
        """Cosines of drawn places of the crops at each level, finest first.

        Args:
            views: of which the first, the crops, is used.
            teacher: the moving average of these heads.
        """
        view = views[0]
        assert view.full_decodings is not None
        found = []
        for level in range(len(self.project)):
            mine, theirs = view.decodings[level], view.full_decodings[level]
            d, h, w = mine.shape[2:]
            places = _draw(mine, self.samples)
            with torch.no_grad():
                targets = teacher.cosines(level, _at(theirs, places))
            cosines = self.cosines(level, _at(mine, places))
            found.append(PlacePrototypes(cosines, targets, places, (d, h, w), self.centre[level]))
        return found

    def cosines(self, level: int, features: Tensor) -> Tensor:
        """Features ``[B, N, C]`` to their similarity to each prototype of a level, ``[B, N, K]``, from -1 to 1."""
        projected = self.project[level](features)
        exact = torch.promote_types(projected.dtype, torch.float32)  # a temperature will multiply what is rounded here
        with torch.autocast(features.device.type, enabled=False):
            sides = (F.normalize(side.to(exact), dim=-1) for side in (projected, self.prototypes[level]))
            projected, prototypes = sides
            return projected @ prototypes.T


def _draw(decoded: Tensor, count: int) -> Tensor:
    """int64 ``[B, N]``: different places of each crop, evenly drawn."""
    batch, sites = len(decoded), decoded[0, 0].numel()
    if sites <= count:
        return torch.arange(sites, device=decoded.device).expand(batch, -1)
    return torch.rand(batch, sites, device=decoded.device).topk(count).indices


def _at(decoded: Tensor, places: Tensor) -> Tensor:
    """``[B, C, d, h, w]`` at places ``[B, N]``: ``[B, N, C]``."""
    rows = decoded.flatten(2).transpose(1, 2)  # no copy if stored channels last
    return rows.gather(1, places[..., None].expand(-1, -1, rows.shape[2]))
