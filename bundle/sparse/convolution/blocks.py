# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""Submanifold convolution over the visible blocks: gather each block with its halo, then one dense convolution.

The gradient with respect to the input is again such a convolution, of the output gradient gathered with its own halo,
so the backward needs no scatter and no atomic addition; the weight's gradient comes from the re-gathered input, which
is cheaper to gather twice than to keep.
"""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from bundle.cells import Triple, triple
from bundle.sparse.layout import CellLayout, HaloTable
from bundle.sparse.storage import as_blocks, as_rows, channels_last
from bundle.sparse.windows import Window

__all__ = ["convolve_blocks", "widen"]

#: widened blocks are made and used this many bytes at a time on a CPU: more comes from the system anew at every call
#: (glibc's largest threshold is 32 MiB), and clearing its pages takes five times as long as the gather
PART_BYTES = 30 * 2**20


def convolve_blocks(
    blocks: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    layout: CellLayout,
    block: Triple,
    window: Window,
    groups: int = 1,
) -> Tensor:
    """Convolves ``[N, C_in, d, h, w]``, the blocks of the visible cells, to ``[N, C_out, d/s, h/s, w/s]``.

    Args:
        blocks: features, one block per visible cell.
        weight: ``[C_out, C_in / groups, kd, kh, kw]``.
        bias: ``[C_out]`` or None.
        layout: which cells are visible.
        block: sites per cell and axis of the input.
        window: what an output reads.
        groups: as a dense layer's.
    """
    return _BlockConvolution.apply(blocks, weight, bias, _Tables(layout, block, window), groups)


class _Tables:
    """The halo widths of one convolution's forward and backward, and their tables (kept by the layout)."""

    def __init__(self, layout: CellLayout, block: Triple, window: Window) -> None:
        stride, padding = window.stride, window.padding
        reach = [d * (k - 1) for k, d in zip(window.kernel, window.dilation)]
        self.layout, self.block, self.window = layout, block, window
        self.out_block = triple(b // s for b, s in zip(block, stride))
        # input i is read by outputs (i + p - reach) / s ... (i + p) / s
        self.grad_low = triple((r - p) // s if r > p else 0 for r, p, s in zip(reach, padding, stride))
        self.grad_high = triple(
            (b - 1 + p) // s - (o - 1) for b, p, s, o in zip(block, padding, stride, self.out_block)
        )
        # site i of the input is place i + p + grad_low * s of the transposed convolution over the widened gradient
        self.grad_shift = triple(p + lo * s for p, lo, s in zip(padding, self.grad_low, stride))

    def forward(self, blocks: Tensor) -> list[HaloTable]:
        """Tables that widen the input, a part of the cells each."""
        low, high = self.window.padding, self.window.high
        return self.layout.halos(self.block, low, high, _parts(blocks, self.block, low, high))

    def backward(self, grad: Tensor) -> list[HaloTable]:
        """Tables that widen the output's gradient, a part of the cells each."""
        low, high = self.grad_low, self.grad_high
        return self.layout.halos(self.out_block, low, high, _parts(grad, self.out_block, low, high))


def _parts(blocks: Tensor, block: Triple, low: Triple, high: Triple) -> int:
    """In how many parts to widen the blocks, so that a part stays below `PART_BYTES`."""
    if blocks.device.type != "cpu":
        return 1
    sites = prod(b + lo + hi for b, lo, hi in zip(block, low, high))
    return min(len(blocks), -(-len(blocks) * sites * blocks.shape[1] * blocks.element_size() // PART_BYTES))


class _BlockConvolution(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, blocks: Tensor, weight: Tensor, bias: Tensor | None, tables: _Tables, groups: int) -> Tensor:
        ctx.save_for_backward(blocks, weight)
        ctx.tables, ctx.groups, ctx.has_bias = tables, groups, bias is not None
        weight, window = channels_last(weight), tables.window
        return _in_parts(
            blocks,
            tables.forward(blocks),
            lambda wide: F.conv3d(wide, weight, bias, window.stride, 0, window.dilation, groups),
        )

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        blocks, weight = ctx.saved_tensors
        tables, window = ctx.tables, ctx.tables.window
        grad_blocks = grad_weight = grad_bias = None
        if ctx.needs_input_grad[0]:
            kernel = channels_last(weight)
            grad_blocks = _in_parts(
                grad, tables.backward(grad), lambda wide: _transposed(wide, kernel, tables, ctx.groups)
            )
        if ctx.needs_input_grad[1] or (ctx.has_bias and ctx.needs_input_grad[2]):
            rows, first = as_rows(blocks), 0
            for table in tables.forward(blocks):
                _, of_weight, of_bias = torch.ops.aten.convolution_backward(
                    channels_last(grad[first : first + table.cells]),
                    _widen_rows(rows, table),
                    weight,
                    [weight.shape[0]] if ctx.has_bias else None,
                    window.stride,
                    [0, 0, 0],
                    window.dilation,
                    False,
                    [0, 0, 0],
                    ctx.groups,
                    [False, True, ctx.has_bias],
                )
                first += table.cells
                grad_weight = of_weight if grad_weight is None else grad_weight.add_(of_weight)
                if ctx.has_bias:
                    grad_bias = of_bias if grad_bias is None else grad_bias.add_(of_bias)
        return grad_blocks, grad_weight, grad_bias, None, None


def _transposed(wide: Tensor, weight: Tensor, tables: _Tables, groups: int) -> Tensor:
    """The input's gradient: a transposed convolution of the widened output gradient, cut to the block."""
    crop, stride, dilation = tables.grad_shift, tables.window.stride, tables.window.dilation
    full = [
        (n - 1) * s + d * (k - 1) + 1 - 2 * c
        for n, s, d, k, c in zip(wide.shape[2:], stride, dilation, weight.shape[2:], crop)
    ]
    extra = [max(b - f, 0) for b, f in zip(tables.block, full)]  # sites past the last one that any output read
    grad = F.conv_transpose3d(wide, weight, None, stride, crop, extra, groups, dilation)
    d, h, w = tables.block
    return grad[:, :, :d, :h, :w]


def _in_parts(blocks: Tensor, tables: list[HaloTable], function: Callable[[Tensor], Tensor]) -> Tensor:
    """`function` of the widened blocks, a part of the cells at a time."""
    rows = as_rows(blocks)
    if len(tables) == 1:
        return channels_last(function(_widen_rows(rows, tables[0])))
    result, first = None, 0
    for table in tables:
        part = function(_widen_rows(rows, table))
        if result is None:
            shape = (len(blocks), *part.shape[1:])
            result = torch.empty(shape, dtype=part.dtype, device=part.device, memory_format=torch.channels_last_3d)
        result[first : first + table.cells] = part
        first += table.cells
    assert result is not None  # a layout has at least one cell
    return result


def widen(blocks: Tensor, table: HaloTable, absent: float = 0.0) -> Tensor:
    """``[N, C, d, h, w]`` -> ``[N, C, *table.block]`` by gathering rows of channels; `absent` where no site is."""
    return _widen_rows(as_rows(blocks), table, absent)


def _widen_rows(rows: Tensor, table: HaloTable, absent: float = 0.0) -> Tensor:
    return as_blocks(rows.index_select(0, table.rows).index_fill_(0, table.absent, absent), table.block)
