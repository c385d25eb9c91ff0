# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""Features of drawn sites, for measures of what an encoder has learned."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from bundle.networks.depth_pairs import average_at
from bundle.networks.encoders import Encoder
from bundle.sparse import CellLayout, SparseVolume

__all__ = ["SiteFeatures", "read_site_features"]

_SITES = 128  # per crop, at most


@dataclass
class SiteFeatures:
    """Features of drawn sites of one crop, on the CPU in float64.

    Attributes:
        fine: ``[N, C]``, the last but one depth, averaged over the coarsest sites.
        coarse: ``[N, C']``, the coarsest depth.
        place: ``[N, P]``, what position alone says: the site's number as one-hot, and its coordinates' powers.
        volume: the number of the volume.
        draw: the number of the crop.
    """

    fine: Tensor
    coarse: Tensor
    place: Tensor
    volume: int
    draw: int


def read_site_features(
    encoders: Sequence[Encoder],
    image: Tensor,
    visible: Tensor,
    executor: str,
    volumes: Sequence[int],
    draws: Sequence[int],
) -> list[list[SiteFeatures]]:
    """Features of the same drawn visible sites in several encoders: for each encoder one entry per crop.

    Args:
        encoders: on the image's device; left in the mode they are in.
        image: ``[B, C, D, H, W]``.
        visible: bool ``[B, 1, d, h, w]`` on cells.
        executor: of the sparse execution.
        volumes: numbers of those that the crops are from.
        draws: numbers of the crops.
    """
    volume = SparseVolume.from_dense(image, CellLayout(visible), executor)
    sites = volume.layout.draw_sites(_SITES * len(volumes), (1, 1, 1))
    place, rows = _place(sites.cpu(), volume.layout.grid), sites[:, 0].cpu()
    found = []
    for encoder in encoders:
        was_training = encoder.training
        encoder.eval()
        features = encoder(volume)
        encoder.train(was_training)
        fine = average_at(features[-2], features[-1], sites).double().cpu()
        coarse = features[-1].at(sites).double().cpu()
        crops = [(rows == row, *numbers) for row, numbers in enumerate(zip(volumes, draws, strict=True))]
        found.append([SiteFeatures(fine[at], coarse[at], place[at], *numbers) for at, *numbers in crops if at.any()])
    return found


def _place(sites: Tensor, grid: Sequence[int]) -> Tensor:
    """``[N, P]``: one-hot of the site, and the powers of its coordinates up to the third."""
    d, h, w = grid
    number = (sites[:, 1] * h + sites[:, 2]) * w + sites[:, 3]
    one_hot = nn.functional.one_hot(number, d * h * w).double()
    x = (sites[:, 1:].double() + 0.5) / torch.tensor(grid, dtype=torch.float64) - 0.5
    return torch.cat([one_hot, x, x**2, x**3, x[:, :1] * x[:, 1:2], x[:, :1] * x[:, 2:], x[:, 1:2] * x[:, 2:]], 1)
