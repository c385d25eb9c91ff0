# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""Which visible sites a convolution's outputs read: tables for the convolutions that work on sites, not blocks."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from bundle.cells import Triple
from bundle.sparse.layout import CellLayout
from bundle.sparse.windows import Window

__all__ = ["NeighbourTable", "PairTable", "neighbour_table", "pair_table"]


@dataclass(frozen=True)
class NeighbourTable:
    """Where each visible site's ``K`` kernel neighbours, itself among them, are read from.

    Attributes:
        rows: ``[sites * K]`` int64, rows of features seen as ``[N * d * h * w, C]``; 0 stands in where absent.
        absent: int64, the positions in `rows` whose site is absent.
        opposite_rows: as `rows`, each site's neighbours in reverse order of the kernel.
        opposite_absent: as `absent`, for `opposite_rows`.
    """

    rows: Tensor
    absent: Tensor
    opposite_rows: Tensor
    opposite_absent: Tensor


@dataclass(frozen=True)
class PairTable:
    """For each place of the kernel, the outputs that read a visible input there, and that input.

    Attributes:
        outputs: for each place int64 ``[pairs]``, different rows of the output seen as ``[sites, C]``.
        inputs: for each place int64 ``[pairs]``, different rows of the input.
    """

    outputs: tuple[Tensor, ...]
    inputs: tuple[Tensor, ...]


def neighbour_table(layout: CellLayout, cell_shape: Triple, window: Window) -> NeighbourTable:
    """The table of a window that keeps the map's size, for visible cells of `cell_shape` sites."""

    def make() -> NeighbourTable:
        rows, there = _reads(layout, cell_shape, window)
        absent, count = ~there, int(_count_absent(layout, cell_shape, window).sum())
        return NeighbourTable(
            rows.flatten(),
            absent.flatten().nonzero_static(size=count)[:, 0],
            rows.flip(1).flatten(),
            absent.flip(1).flatten().nonzero_static(size=count)[:, 0],
        )

    return layout.cached(("neighbours", cell_shape, window), make)


def pair_table(layout: CellLayout, cell_shape: Triple, window: Window) -> PairTable:
    """The table of any window over an input whose visible cells have `cell_shape` sites."""

    def make() -> PairTable:
        rows, there = _reads(layout, cell_shape, window)
        outputs = layout.count_sites(window.outputs(cell_shape))
        counts = (outputs - _count_absent(layout, cell_shape, window).flatten()).tolist()
        place, output = there.T.nonzero_static(size=sum(counts)).unbind(1)  # sorted by place
        return PairTable(output.split(counts), rows[output, place].split(counts))

    return layout.cached(("pairs", cell_shape, window), make)


def _count_absent(layout: CellLayout, cell_shape: Triple, window: Window) -> np.ndarray:
    """For each place of the kernel, on three axes: how many outputs read an absent site there."""
    axes = zip(window.outputs(cell_shape), window.kernel, window.stride, window.padding, window.dilation)
    sites = [
        [range(k * step - low, k * step - low + outputs * stride, stride) for k in range(kernel)]
        for outputs, kernel, stride, low, step in axes
    ]
    return layout.count_absent(cell_shape, sites)


def _reads(layout: CellLayout, cell_shape: Triple, window: Window) -> tuple[Tensor, Tensor]:
    """``[output sites, K]``, the row that each output reads at each place of the kernel, and whether it is visible."""
    halo = layout.halo(cell_shape, window.padding, window.high)
    present = torch.ones(len(halo.rows), dtype=torch.bool, device=layout.device).index_fill_(0, halo.absent, False)
    # per axis: the place in the widened block that an output reads with the k-th place of the kernel, [outputs, K]
    axes = [
        stride * torch.arange(b // stride, device=layout.device)[:, None]
        + dilation * torch.arange(k, device=layout.device)
        for b, stride, dilation, k in zip(cell_shape, window.stride, window.dilation, window.kernel)
    ]
    z, y, x = (
        axes[0][:, None, None, :, None, None],
        axes[1][None, :, None, None, :, None],
        axes[2][None, None, :, None, None, :],
    )
    place = ((z * halo.shape[1] + y) * halo.shape[2] + x).flatten(3).flatten(0, 2)  # [outputs of a block, K]
    rows, there = (t.view(len(layout), -1)[:, place].flatten(0, 1) for t in (halo.rows, present))
    return rows, there
