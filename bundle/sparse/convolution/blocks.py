# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""Submanifold convolution over the visible blocks: gather each block with its halo, then one dense convolution.

The gradient with respect to the input is again a convolution, of the output gradient gathered with its halo,
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
from bundle.sparse.storage import blocks_to_rows, channels_last, empty_blocks, widen
from bundle.sparse.windows import Window

__all__ = ["convolve_blocks"]

#: widened blocks are made and used this many bytes at a time on a CPU: more comes from the system anew at every call
#: (glibc's largest threshold is 32 MiB), and clearing its pages takes five times as long as the gather
PART_BYTES = 30 * 2**20


def convolve_blocks(
    blocks: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    layout: CellLayout,
    cell_shape: Triple,
    window: Window,
    groups: int = 1,
) -> Tensor:
    """Takes and gives what `methods.convolve` does, with any number of groups."""
    return _BlockConvolution.apply(blocks, weight, bias, _Tables(layout, cell_shape, window), groups)


class _Tables:
    """The halo widths of one convolution's forward and backward, and their tables (kept by the layout)."""

    def __init__(self, layout: CellLayout, cell_shape: Triple, window: Window) -> None:
        stride, padding = window.stride, window.padding
        reach = [d * (k - 1) for k, d in zip(window.kernel, window.dilation)]
        self.layout, self.cell_shape, self.window = layout, cell_shape, window
        self.out_shape = window.outputs(cell_shape)
        # input i is read by outputs (i + p - reach) / s ... (i + p) / s
        self.grad_low = triple((r - p) // s if r > p else 0 for r, p, s in zip(reach, padding, stride))
        self.grad_high = triple(
            (b - 1 + p) // s - (o - 1) for b, p, s, o in zip(cell_shape, padding, stride, self.out_shape)
        )
        # site i of the input is place i + p + grad_low * s of the transposed convolution over the widened gradient
        self.grad_shift = triple(p + lo * s for p, lo, s in zip(padding, self.grad_low, stride))

    def forward(self, blocks: Tensor) -> list[HaloTable]:
        """Tables that widen the input, a part of the cells each."""
        low, high = self.window.padding, self.window.high
        return self.layout.halos(self.cell_shape, low, high, _parts(blocks, self.cell_shape, low, high))

    def backward(self, grad: Tensor) -> list[HaloTable]:
        """Tables that widen the output's gradient, a part of the cells each."""
        low, high = self.grad_low, self.grad_high
        return self.layout.halos(self.out_shape, low, high, _parts(grad, self.out_shape, low, high))


def _parts(blocks: Tensor, cell_shape: Triple, low: Triple, high: Triple) -> int:
    """In how many parts to widen the blocks, so that a part stays below `PART_BYTES`."""
    if blocks.device.type != "cpu":
        return 1
    sites = prod(b + lo + hi for b, lo, hi in zip(cell_shape, low, high))
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
            rows = blocks_to_rows(blocks)
            for table in tables.forward(blocks):
                _, part_weight, part_bias = torch.ops.aten.convolution_backward(
                    channels_last(grad[table.cells]),
                    widen(rows, table),
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
                grad_weight = part_weight if grad_weight is None else grad_weight.add_(part_weight)
                if ctx.has_bias:
                    grad_bias = part_bias if grad_bias is None else grad_bias.add_(part_bias)
        return grad_blocks, grad_weight, grad_bias, None, None


def _transposed(wide: Tensor, weight: Tensor, tables: _Tables, groups: int) -> Tensor:
    """The input's gradient: a transposed convolution of the widened output gradient, cut to the block."""
    crop, stride, dilation = tables.grad_shift, tables.window.stride, tables.window.dilation
    full = [
        (n - 1) * s + d * (k - 1) + 1 - 2 * c
        for n, s, d, k, c in zip(wide.shape[2:], stride, dilation, weight.shape[2:], crop)
    ]
    extra = [max(b - f, 0) for b, f in zip(tables.cell_shape, full)]  # sites past the last one that any output read
    grad = F.conv_transpose3d(wide, weight, None, stride, crop, extra, groups, dilation)
    d, h, w = tables.cell_shape
    return grad[:, :, :d, :h, :w]


def _in_parts(blocks: Tensor, tables: list[HaloTable], function: Callable[[Tensor], Tensor]) -> Tensor:
    """`function` of the widened blocks, a part of the cells at a time."""
    rows = blocks_to_rows(blocks)
    if len(tables) == 1:
        return channels_last(function(widen(rows, tables[0])))
    result = None
    for table in tables:
        part = function(widen(rows, table))
        if result is None:
            result = empty_blocks(part, len(blocks), part.shape[1], triple(part.shape[2:]))
        result[table.cells] = part
    assert result is not None  # a layout has at least one cell
    return result
