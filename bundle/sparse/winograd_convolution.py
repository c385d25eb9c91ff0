# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""Submanifold 3x3x3 convolution with half the multiplications: Winograd's algorithm along the depth.

Four outputs of a filter of three taps need six products instead of twelve, F(4, 3) of Lavin & Gray 2016,
arXiv:1509.09308, section 4.1: with the matrices below, ``y = A' ((G w) * (B' x))``, and the same for the gradients.
Here `x` is six planes of a widened block, and each of the six products a two-dimensional convolution. Only one of
three axes is transformed: the transforms then cost little beside the products, and rounding stays near that of the
plain sum (the errors grow with each axis). oneDNN has nothing like it in three dimensions, so it is for a CPU.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from bundle.sparse.layout import CellLayout, HaloTable, Triple
from bundle.sparse.site_rows import as_rows
from bundle.sparse.windows import Window

__all__ = ["convolve_winograd", "fits_winograd"]

#: transformed planes are made and used this many bytes at a time: more comes from the system anew at every call or
#: leaves the cache before it is used, less is many small products
PART_BYTES = 8 * 2**20

#: outputs of one tile, and the planes that they read, which is also the number of products
_OUT, _IN = 4, 6

_INPUT = [[4, 0, -5, 0, 1, 0], [0, -4, -4, 1, 1, 0], [0, 4, -4, -1, 1, 0], [0, -2, -1, 2, 1, 0], [0, 2, -1, -2, 1, 0],
          [0, 4, 0, -5, 0, 1]]  # fmt: skip
_KERNEL = [[1 / 4, 0, 0], [-1 / 6, -1 / 6, -1 / 6], [-1 / 6, 1 / 6, -1 / 6], [1 / 24, 1 / 12, 1 / 6],
           [1 / 24, -1 / 12, 1 / 6], [0, 0, 1]]  # fmt: skip
_OUTPUT = [[1, 1, 1, 1, 1, 0], [0, 1, -1, 2, -2, 0], [0, 1, 1, 4, 4, 0], [0, 1, -1, 8, -8, 1]]


def fits_winograd(block: Triple, window: Window) -> bool:
    """Whether a convolution has three taps along the depth, keeps the size, and tiles of four outputs fill a block."""
    return window.keeps_size and window.kernel[0] == 3 and window.dilation == (1, 1, 1) and block[0] % _OUT == 0


def convolve_winograd(
    blocks: Tensor, weight: Tensor, bias: Tensor | None, layout: CellLayout, block: Triple, window: Window
) -> Tensor:
    """Convolves ``[N, C_in, d, h, w]``, the blocks of the visible cells, to ``[N, C_out, d, h, w]``.

    Args:
        blocks: features, one block per visible cell.
        weight: ``[C_out, C_in, 3, kh, kw]``.
        bias: ``[C_out]`` or None.
        layout: which cells are visible.
        block: sites per cell and axis, a multiple of four on the first.
        window: what an output reads; see `fits_winograd`.
    """
    return _WinogradConvolution.apply(blocks, weight, bias, layout, block, window)


class _WinogradConvolution(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, blocks: Tensor, weight: Tensor, bias: Tensor | None, layout: CellLayout, block: Triple, window: Window
    ) -> Tensor:
        ctx.save_for_backward(blocks, weight)
        ctx.layout, ctx.block, ctx.window, ctx.has_bias = layout, block, window, bias is not None
        out = _convolve(blocks, weight, layout, block, window)
        return out if bias is None else out.add_(bias.view(1, -1, 1, 1, 1))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        blocks, weight = ctx.saved_tensors
        layout, block, window = ctx.layout, ctx.block, ctx.window
        grad_blocks = grad_weight = grad_bias = None
        if ctx.needs_input_grad[0]:  # a centred window reads backwards what it reads forwards
            grad_blocks = _convolve(grad, weight.flip(2, 3, 4).transpose(0, 1), layout, block, window)
        if ctx.needs_input_grad[1]:
            grad_weight = _weight_gradient(blocks, grad, weight, layout, block, window)
        if ctx.has_bias and ctx.needs_input_grad[2]:
            grad_bias = as_rows(grad).sum(0)
        return grad_blocks, grad_weight, grad_bias, None, None, None


@dataclass(frozen=True)
class _Part:
    """Some cells of the batch, ``first`` to ``last``: their table, and how many tiles fill a block's depth."""

    table: HaloTable
    first: int
    last: int
    tiles: int

    def planes(self, rows: Tensor) -> Tensor:
        """``B' x`` of the widened blocks: ``[6, tiles * n, C, h + halo, w + halo]``, channels last."""
        wide = rows.index_select(0, self.table.rows).index_fill_(0, self.table.absent, 0.0)
        depth, height, width = self.table.block
        matrix = _input_transform(self.tiles, rows)
        planes = matrix @ wide.view(depth, -1)
        return planes.view(_IN, -1, height, width, rows.shape[1]).permute(0, 1, 4, 2, 3)


def _parts(rows: Tensor, layout: CellLayout, block: Triple, window: Window) -> Iterator[_Part]:
    """The cells in parts whose transformed planes stay below `PART_BYTES`."""
    tiles = block[0] // _OUT
    area = prod(b + lo + hi for b, lo, hi in zip(block[1:], window.padding[1:], window.high[1:]))
    per_cell = _IN * tiles * area * rows.shape[1] * rows.element_size()
    count = min(len(layout), -(-len(layout) * per_cell // PART_BYTES))
    tables = layout.keep(
        ("depth first", block, window, count),
        lambda: [_depth_first(t) for t in layout.halos(block, window.padding, window.high, count)],
    )
    first = 0
    for table in tables:
        yield _Part(table, first, first + table.cells, tiles)
        first += table.cells


def _depth_first(table: HaloTable) -> HaloTable:
    """The same sites, in the order depth, cell, height, width."""
    places = torch.arange(len(table.rows), device=table.rows.device)
    order = places.view(table.cells, table.block[0], -1).transpose(0, 1).flatten()
    absent = torch.zeros_like(places, dtype=torch.bool).index_fill_(0, table.absent, True)
    return HaloTable(table.rows[order], absent[order].nonzero()[:, 0], table.block, table.cells)


def _convolve(blocks: Tensor, weight: Tensor, layout: CellLayout, block: Triple, window: Window) -> Tensor:
    rows, channels = as_rows(blocks), len(weight)
    kernels = _transformed(weight)
    shape = (len(blocks), channels, *block)
    result = torch.empty(shape, dtype=rows.dtype, device=rows.device, memory_format=torch.channels_last_3d)
    for part in _parts(rows, layout, block, window):
        planes = part.planes(rows)
        products = rows.new_empty(_IN, planes.shape[1], *block[1:], channels)
        for product, plane, kernel in zip(products, planes, kernels):
            product.copy_(F.conv2d(plane, kernel).permute(0, 2, 3, 1))
        out = _output_transform(part.tiles, rows) @ products.view(_IN * part.tiles, -1)
        out = out.view(block[0], -1, *block[1:], channels)
        result[part.first : part.last] = out.permute(1, 4, 0, 2, 3)
    return result


def _weight_gradient(
    blocks: Tensor, grad: Tensor, weight: Tensor, layout: CellLayout, block: Triple, window: Window
) -> Tensor:
    rows, grad = as_rows(blocks), grad.permute(0, 2, 3, 4, 1)
    kernels = _transformed(weight)
    sums = torch.zeros_like(kernels)
    for part in _parts(rows, layout, block, window):
        planes = part.planes(rows)
        here = grad[part.first : part.last].transpose(0, 1).reshape(block[0], -1)
        products = _output_transform(part.tiles, rows).T @ here
        products = products.view(_IN, -1, *block[1:], len(weight)).permute(0, 1, 4, 2, 3)
        for place, (plane, product, kernel) in enumerate(zip(planes, products, kernels)):
            _, of_kernel, _ = torch.ops.aten.convolution_backward(
                product, plane, kernel, None, [1, 1], [0, 0], [1, 1], False, [0, 0], 1, [False, True, False]
            )
            sums[place] += of_kernel
    matrix = torch.tensor(_KERNEL, dtype=torch.float64).to(sums)
    return torch.tensordot(matrix, sums, ([0], [0])).permute(1, 2, 0, 3, 4)


def _transformed(weight: Tensor) -> Tensor:
    """``G w``: ``[C_out, C_in, 3, kh, kw]`` -> ``[6, C_out, C_in, kh, kw]``, channels last."""
    matrix = torch.tensor(_KERNEL, dtype=torch.float64).to(weight)
    kernels = torch.tensordot(matrix, weight.permute(2, 0, 3, 4, 1).contiguous(), ([1], [0]))
    return kernels.permute(0, 1, 4, 2, 3)


def _input_transform(tiles: int, like: Tensor) -> Tensor:
    """``B'`` of all tiles of a block, ``[6 * tiles, 4 * tiles + 2]``: neighbouring tiles share two planes."""
    read = torch.eye(_OUT * tiles + 2, dtype=torch.float64).unfold(0, _IN, _OUT)  # [tile, plane, place in the tile]
    return torch.einsum("ac,ipc->aip", torch.tensor(_INPUT, dtype=torch.float64), read).flatten(0, 1).to(like)


def _output_transform(tiles: int, like: Tensor) -> Tensor:
    """``A'`` of all tiles of a block, ``[4 * tiles, 6 * tiles]``; products are ordered by product, then by tile."""
    own = torch.eye(tiles, dtype=torch.float64)
    whole = torch.einsum("ij,oa->ioaj", own, torch.tensor(_OUTPUT, dtype=torch.float64))
    return whole.reshape(_OUT * tiles, -1).to(like)
