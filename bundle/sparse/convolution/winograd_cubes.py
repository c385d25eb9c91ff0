# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""Submanifold 3x3x3 convolution with an eighth of the multiplications: Winograd's algorithm along all three axes.

A tile is 4x4x4 outputs, and `x` of ``y = A' ((G w) * (B' x))`` the 6x6x6 sites that they read, each axis transformed
in turn; the 216 products are of matrices ``[tiles, C_in]`` and ``[C_in, C_out]``, which is Jia et al. 2018,
"Optimizing N-dimensional, Winograd-based convolution for manycore CPUs" (PPoPP), over the tiles of visible cells only.
The transforms are passes over memory, so it pays from 32 channels on, and in parts that stay in the cache.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor

from bundle.cells import Triple, triple
from bundle.sparse.convolution.winograd import INPUT, KERNEL, OUT, OUTPUT, READ, Algorithm, apply
from bundle.sparse.layout import CellLayout, HaloTable
from bundle.sparse.storage import blocks_to_rows, empty_blocks
from bundle.sparse.windows import Window

__all__ = ["convolve_winograd_cubes"]

#: the transformed sites of a part, with two or three of these buffers in use: less is more calls, more leaves the cache
PART_BYTES = 4 * 2**20


def convolve_winograd_cubes(
    blocks: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    layout: CellLayout,
    cell_shape: Triple,
    window: Window,
    groups: int = 1,
) -> Tensor:
    """Takes and gives what `methods.convolve` does, with one group only.

    Kernels have three taps on each axis, and the sites per cell and axis are multiples of four: see `tiles_fill`.
    """
    return apply(Algorithm(_convolve, _weight_gradient), blocks, weight, bias, layout, cell_shape, window)


class _Transform:
    """Multiplies the three first axes of its argument, each of length n, by `matrix` ``[m, n]``, in `like`'s type."""

    def __init__(self, matrix: Tensor, like: Tensor) -> None:
        self.one = matrix.to(like)
        self.two = torch.kron(matrix, matrix).to(like)

    def __call__(self, x: Tensor, scratch: Tensor, result: Tensor) -> Tensor:
        """``[m * m * m, the rest]``.

        Args:
            x: contiguous, of ``n * n * n * M`` elements; may lie in `result`.
            scratch: flat, at least ``m * m * n * M`` long; written over.
            result: flat, at least ``m * m * m * M`` long.
        """
        m, n = self.one.shape
        width = x.numel() // n**3
        half = torch.mm(self.two, x.view(n * n, -1), out=scratch[: m * m * n * width].view(m * m, -1))
        whole = result[: m**3 * width].view(m * m, m, width)
        torch.bmm(self.one.expand(m * m, -1, -1), half.view(m * m, n, width), out=whole)
        return whole.view(m**3, width)


@dataclass(frozen=True)
class _Part:
    """Some cells of the batch: the rows that their tiles read, and which of those are absent."""

    rows: Tensor
    absent: Tensor
    cells: slice

    def read(self, rows: Tensor, transform: _Transform, wide: Tensor, scratch: Tensor) -> Tensor:
        """``B' x`` of the part's tiles, ``[216, tiles, C]``, written to `wide`."""
        channels = rows.shape[1]
        sites = wide[: len(self.rows) * channels].view(-1, channels)
        torch.index_select(rows, 0, self.rows, out=sites)
        sites.index_fill_(0, self.absent, 0.0)
        return transform(sites, scratch, wide).view(READ**3, -1, channels)


class _Batch:
    """The cells in parts, with buffers for the largest: memory that is new at every call would cost more than its use.

    Args:
        like: features ``[sites, C]``.
        channels: the most of input and output.
        layout, cell_shape, window: as for the convolution.
        buffers: how many.
    """

    def __init__(
        self, like: Tensor, channels: int, layout: CellLayout, cell_shape: Triple, window: Window, buffers: int
    ) -> None:
        self.tiles = triple(b // OUT for b in cell_shape)
        per_cell = READ**3 * prod(self.tiles) * channels
        count = min(len(layout), -(-len(layout) * per_cell * like.element_size() // PART_BYTES))
        self.parts: list[_Part] = layout.cached(
            ("winograd cubes", cell_shape, window, count), lambda: list(_parts(layout, cell_shape, window, count))
        )
        size = per_cell * max(part.cells.stop - part.cells.start for part in self.parts)
        self.buffers = [like.new_empty(size) for _ in range(buffers)]

    def tiled(self, blocks: Tensor, part: _Part) -> Tensor:
        """The part's blocks ``[N, C, d, h, w]`` as ``[4, 4, 4, n, td, th, tw, C]``, a view."""
        sites = blocks[part.cells].permute(0, 2, 3, 4, 1)
        for axis, tiles in zip((1, 3, 5), self.tiles):
            sites = sites.unflatten(axis, (tiles, OUT))
        return sites.permute(2, 4, 6, 0, 1, 3, 5, 7)


def _parts(layout: CellLayout, cell_shape: Triple, window: Window, count: int) -> Iterator[_Part]:
    # per axis: what the tiles of a cell read
    sites = [
        [[first - low + place for first in range(0, b, OUT) for place in range(READ)]]
        for b, low in zip(cell_shape, window.padding)
    ]
    for table in layout.halos(cell_shape, window.padding, window.high, count):
        absent = torch.zeros_like(table.rows, dtype=torch.bool).index_fill_(0, table.absent, True)
        size = int(layout.count_absent(cell_shape, sites, table.cells).sum())
        yield _Part(_by_tile(table.rows, table), _by_tile(absent, table).nonzero_static(size=size)[:, 0], table.cells)


def _by_tile(sites: Tensor, table: HaloTable) -> Tensor:
    """Of widened blocks, in the order place in the tile, cell, tile; neighbouring tiles share sites."""
    tiles = sites.view(-1, *table.shape)
    for axis in (1, 2, 3):
        tiles = tiles.unfold(axis, READ, OUT)
    return tiles.permute(4, 5, 6, 0, 1, 2, 3).flatten()


def _convolve(blocks: Tensor, weight: Tensor, layout: CellLayout, cell_shape: Triple, window: Window) -> Tensor:
    rows, (channels, channels_in) = blocks_to_rows(blocks), weight.shape[:2]
    kernels = _transformed(weight)
    result = empty_blocks(rows, len(blocks), channels, cell_shape)
    batch = _Batch(rows, max(channels, channels_in), layout, cell_shape, window, buffers=2)
    to_sites, to_outputs = _Transform(INPUT, rows), _Transform(OUTPUT, rows)
    a, b = batch.buffers
    for part in batch.parts:
        sites = part.read(rows, to_sites, a, b)
        products = b[: sites.numel() // channels_in * channels].view(READ**3, -1, channels)
        torch.bmm(sites, kernels, out=products)
        place = batch.tiled(result, part)
        place.copy_(to_outputs(products, a, b).view(place.shape))
    return result


def _weight_gradient(
    blocks: Tensor, grad: Tensor, weight: Tensor, layout: CellLayout, cell_shape: Triple, window: Window
) -> Tensor:
    rows, (channels, channels_in) = blocks_to_rows(blocks), weight.shape[:2]
    sums = rows.new_zeros(READ**3, channels_in, channels)
    batch = _Batch(rows, max(channels, channels_in), layout, cell_shape, window, buffers=3)
    to_sites, from_outputs = _Transform(INPUT, rows), _Transform(OUTPUT.T, rows)
    a, b, c = batch.buffers
    for part in batch.parts:
        sites = part.read(rows, to_sites, a, b)
        place = batch.tiled(grad, part)
        here = b[: place.numel()].view(place.shape).copy_(place)
        products = from_outputs(here, c, b).view(READ**3, -1, channels)
        sums.baddbmm_(sites.transpose(1, 2), products)
    size = channels * channels_in
    to_weight = _Transform(KERNEL.T, sums)
    kernels = to_weight(sums, sums.new_empty(9 * READ * size), sums.new_empty(27 * size))
    return kernels.view(3, 3, 3, channels_in, channels).permute(4, 3, 0, 1, 2)


def _transformed(weight: Tensor) -> Tensor:
    """``G w``: ``[C_out, C_in, 3, 3, 3]`` -> ``[216, C_in, C_out]``."""
    taps = weight.permute(2, 3, 4, 1, 0).contiguous()
    size = weight.shape[0] * weight.shape[1]
    kernels = _Transform(KERNEL, taps)(taps, taps.new_empty(READ**2 * 3 * size), taps.new_empty(READ**3 * size))
    return kernels.view(READ**3, weight.shape[1], weight.shape[0])
