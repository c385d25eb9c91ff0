# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""Submanifold 3x3x3 convolution with half the multiplications: Winograd's algorithm along the depth.

`x` of ``y = A' ((G w) * (B' x))`` is six planes of a widened block, and each of the six products a two-dimensional
convolution. For blocks that tiles of `winograd_cubes` do not fill, as those of anisotropic volumes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod

import torch
import torch.nn.functional as F
from torch import Tensor

from bundle.cells import Triple
from bundle.sparse.convolution.winograd import INPUT, KERNEL, OUT, OUTPUT, READ, Algorithm, apply
from bundle.sparse.layout import CellLayout, HaloTable
from bundle.sparse.storage import as_rows
from bundle.sparse.windows import Window

__all__ = ["convolve_winograd_depth"]

#: transformed planes are made and used this many bytes at a time: more comes from the system anew at every call or
#: leaves the cache before it is used, less is many small products
PART_BYTES = 8 * 2**20


def convolve_winograd_depth(
    blocks: Tensor, weight: Tensor, bias: Tensor | None, layout: CellLayout, block: Triple, window: Window
) -> Tensor:
    """Convolves ``[N, C_in, d, h, w]``, the blocks of the visible cells, to ``[N, C_out, d, h, w]``.

    Args:
        blocks: features, one block per visible cell.
        weight: ``[C_out, C_in, 3, kh, kw]``.
        bias: ``[C_out]`` or None.
        layout: which cells are visible.
        block: sites per cell and axis, a multiple of four on the first.
        window: what an output reads; see `tiles_fill`.
    """
    return apply(Algorithm(_convolve, _weight_gradient), blocks, weight, bias, layout, block, window)


@dataclass(frozen=True)
class _Part:
    """Some cells of the batch, ``first`` to ``last``: their table, and ``B'`` of all tiles of a block."""

    table: HaloTable
    first: int
    last: int
    transform: Tensor

    def planes(self, rows: Tensor) -> Tensor:
        """``B' x`` of the widened blocks: ``[6, tiles * n, C, h + halo, w + halo]``, channels last."""
        wide = rows.index_select(0, self.table.rows).index_fill_(0, self.table.absent, 0.0)
        depth, height, width = self.table.block
        planes = self.transform @ wide.view(depth, -1)
        return planes.view(READ, -1, height, width, rows.shape[1]).permute(0, 1, 4, 2, 3)


def _parts(rows: Tensor, layout: CellLayout, block: Triple, window: Window) -> Iterator[_Part]:
    """The cells in parts whose transformed planes stay below `PART_BYTES`."""
    tiles = block[0] // OUT
    area = prod(b + lo + hi for b, lo, hi in zip(block[1:], window.padding[1:], window.high[1:]))
    per_cell = READ * tiles * area * rows.shape[1] * rows.element_size()
    count = min(len(layout), -(-len(layout) * per_cell // PART_BYTES))
    tables = layout.keep(
        ("depth first", block, window, count),
        lambda: [_depth_first(t) for t in layout.halos(block, window.padding, window.high, count)],
    )
    first, transform = 0, _input_transform(tiles, rows)
    for table in tables:
        yield _Part(table, first, first + table.cells, transform)
        first += table.cells


def _depth_first(table: HaloTable) -> HaloTable:
    """The same sites, in the order depth, cell, height, width."""
    places = torch.arange(len(table.rows), device=table.rows.device)
    order = places.view(table.cells, table.block[0], -1).transpose(0, 1).flatten()
    absent = torch.zeros_like(places, dtype=torch.bool).index_fill_(0, table.absent, True)
    return HaloTable(table.rows[order], absent[order].nonzero()[:, 0], table.block, table.cells)


def _convolve(blocks: Tensor, weight: Tensor, layout: CellLayout, block: Triple, window: Window) -> Tensor:
    rows, channels = as_rows(blocks), len(weight)
    kernels, transform = _transformed(weight), _output_transform(block[0] // OUT, rows)
    shape = (len(blocks), channels, *block)
    result = torch.empty(shape, dtype=rows.dtype, device=rows.device, memory_format=torch.channels_last_3d)
    for part in _parts(rows, layout, block, window):
        planes = part.planes(rows)
        products = rows.new_empty(READ, planes.shape[1], *block[1:], channels)
        for product, plane, kernel in zip(products, planes, kernels):
            product.copy_(F.conv2d(plane, kernel).permute(0, 2, 3, 1))
        out = (transform @ products.view(transform.shape[1], -1)).view(block[0], -1, *block[1:], channels)
        result[part.first : part.last] = out.permute(1, 4, 0, 2, 3)
    return result


def _weight_gradient(
    blocks: Tensor, grad: Tensor, weight: Tensor, layout: CellLayout, block: Triple, window: Window
) -> Tensor:
    rows, grad = as_rows(blocks), grad.permute(0, 2, 3, 4, 1)
    kernels, transform = _transformed(weight), _output_transform(block[0] // OUT, rows)
    sums = torch.zeros_like(kernels)
    for part in _parts(rows, layout, block, window):
        planes = part.planes(rows)
        here = grad[part.first : part.last].transpose(0, 1).reshape(block[0], -1)
        products = (transform.T @ here).view(READ, -1, *block[1:], len(weight)).permute(0, 1, 4, 2, 3)
        for place, (plane, product, kernel) in enumerate(zip(planes, products, kernels)):
            _, of_kernel, _ = torch.ops.aten.convolution_backward(
                product, plane, kernel, None, [1, 1], [0, 0], [1, 1], False, [0, 0], 1, [False, True, False]
            )
            sums[place] += of_kernel
    return torch.tensordot(KERNEL.to(sums), sums, ([0], [0])).permute(1, 2, 0, 3, 4)


def _transformed(weight: Tensor) -> Tensor:
    """``G w``: ``[C_out, C_in, 3, kh, kw]`` -> ``[6, C_out, C_in, kh, kw]``, channels last."""
    kernels = torch.tensordot(KERNEL.to(weight), weight.permute(2, 0, 3, 4, 1).contiguous(), ([1], [0]))
    return kernels.permute(0, 1, 4, 2, 3)


def _input_transform(tiles: int, like: Tensor) -> Tensor:
    """``B'`` of all tiles of a block, ``[6 * tiles, 4 * tiles + 2]``: neighbouring tiles share two planes."""
    read = torch.eye(OUT * tiles + 2, dtype=torch.float64).unfold(0, READ, OUT)  # [tile, plane, place in the tile]
    return torch.einsum("ac,ipc->aip", INPUT, read).flatten(0, 1).to(like)


def _output_transform(tiles: int, like: Tensor) -> Tensor:
    """``A'`` of all tiles of a block, ``[4 * tiles, 6 * tiles]``; products are ordered by product, then by tile."""
    own = torch.eye(tiles, dtype=torch.float64)
    whole = torch.einsum("ij,oa->ioaj", own, OUTPUT)
    return whole.reshape(OUT * tiles, -1).to(like)
