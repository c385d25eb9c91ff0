# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""Submanifold 3x3x3 convolution with half the multiplications: Winograd's algorithm along the depth.

`x` of ``y = A' ((G w) * (B' x))`` is six planes of a widened block, and each of the six products a two-dimensional
convolution. For blocks that tiles of `winograd_cubes` do not fill, as those of anisotropic volumes.
"""

from __future__ import annotations

from math import prod

import torch
import torch.nn.functional as F
from torch import Tensor

from bundle.cells import Triple
from bundle.sparse.convolution.winograd import INPUT, KERNEL, OUT, OUTPUT, READ, Algorithm, apply
from bundle.sparse.layout import CellLayout, HaloTable
from bundle.sparse.storage import blocks_to_rows, empty_blocks
from bundle.sparse.windows import Window

__all__ = ["convolve_winograd_depth"]

#: transformed planes are made and used this many bytes at a time: more comes from the system anew at every call or
#: leaves the cache before it is used, less is many small products
PART_BYTES = 8 * 2**20


def convolve_winograd_depth(
    blocks: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    layout: CellLayout,
    cell_shape: Triple,
    window: Window,
    groups: int = 1,
) -> Tensor:
    """Takes and gives what `methods.convolve` does, with one group only.

    Kernels have three taps on the first axis, and a cell's sites there are a multiple of four: see `tiles_fill`.
    """
    return apply(Algorithm(_convolve, _weight_gradient), blocks, weight, bias, layout, cell_shape, window)


def _planes(rows: Tensor, table: HaloTable, transform: Tensor) -> Tensor:
    """``B' x`` of the table's widened blocks: ``[6, tiles * n, C, h + halo, w + halo]``, channels last."""
    wide = rows.index_select(0, table.rows).index_fill_(0, table.absent, 0.0)
    depth, height, width = table.shape
    planes = transform @ wide.view(depth, -1)
    return planes.view(READ, -1, height, width, rows.shape[1]).permute(0, 1, 4, 2, 3)


def _tables(rows: Tensor, layout: CellLayout, cell_shape: Triple, window: Window) -> list[HaloTable]:
    """The cells in parts whose transformed planes stay below `PART_BYTES`, with the depth as the first axis."""
    area = prod(b + lo + hi for b, lo, hi in zip(cell_shape[1:], window.padding[1:], window.high[1:]))
    per_cell = READ * (cell_shape[0] // OUT) * area * rows.shape[1] * rows.element_size()
    count = min(len(layout), -(-len(layout) * per_cell // PART_BYTES))
    return layout.cached(
        ("depth first", cell_shape, window, count),
        lambda: [_depth_first(t) for t in layout.halos(cell_shape, window.padding, window.high, count)],
    )


def _depth_first(table: HaloTable) -> HaloTable:
    """The same sites, in the order depth, cell, height, width."""
    places = torch.arange(len(table.rows), device=table.rows.device)
    depth, height, width = table.shape
    order = places.view(-1, depth, height * width).transpose(0, 1).flatten()
    absent = torch.zeros_like(places, dtype=torch.bool).index_fill_(0, table.absent, True)
    return HaloTable(
        table.rows[order], absent[order].nonzero_static(size=len(table.absent))[:, 0], table.shape, table.cells
    )


def _convolve(blocks: Tensor, weight: Tensor, layout: CellLayout, cell_shape: Triple, window: Window) -> Tensor:
    rows, channels, tiles = blocks_to_rows(blocks), len(weight), cell_shape[0] // OUT
    kernels, to_planes, to_outputs = _transformed(weight), _input_transform(tiles, rows), _output_transform(tiles, rows)
    result = empty_blocks(rows, len(blocks), channels, cell_shape)
    for table in _tables(rows, layout, cell_shape, window):
        planes = _planes(rows, table, to_planes)
        products = rows.new_empty(READ, planes.shape[1], *cell_shape[1:], channels)
        for product, plane, kernel in zip(products, planes, kernels):
            product.copy_(F.conv2d(plane, kernel).permute(0, 2, 3, 1))
        out = (to_outputs @ products.view(to_outputs.shape[1], -1)).view(cell_shape[0], -1, *cell_shape[1:], channels)
        result[table.cells] = out.permute(1, 4, 0, 2, 3)
    return result


def _weight_gradient(
    blocks: Tensor, grad: Tensor, weight: Tensor, layout: CellLayout, cell_shape: Triple, window: Window
) -> Tensor:
    rows, grad, tiles = blocks_to_rows(blocks), grad.permute(0, 2, 3, 4, 1), cell_shape[0] // OUT
    kernels, to_planes, to_outputs = _transformed(weight), _input_transform(tiles, rows), _output_transform(tiles, rows)
    sums = torch.zeros_like(kernels)
    for table in _tables(rows, layout, cell_shape, window):
        planes = _planes(rows, table, to_planes)
        here = grad[table.cells].transpose(0, 1).reshape(cell_shape[0], -1)
        products = (to_outputs.T @ here).view(READ, -1, *cell_shape[1:], len(weight)).permute(0, 1, 4, 2, 3)
        for place, (plane, product, kernel) in enumerate(zip(planes, products, kernels)):
            _, kernel_gradient, _ = torch.ops.aten.convolution_backward(
                product, plane, kernel, None, [1, 1], [0, 0], [1, 1], False, [0, 0], 1, [False, True, False]
            )
            sums[place] += kernel_gradient
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
    identity = torch.eye(tiles, dtype=torch.float64)
    whole = torch.einsum("ij,oa->ioaj", identity, OUTPUT)
    return whole.reshape(OUT * tiles, -1).to(like)
