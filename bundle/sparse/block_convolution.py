# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""Submanifold convolution over the visible blocks: gather each block with its halo, then one dense convolution.

The gradient with respect to the input is again such a convolution, of the output gradient gathered with its own halo,
so the backward needs no scatter and no atomic addition; the weight's gradient comes from the re-gathered input, which
is cheaper to gather twice than to keep.
"""

from __future__ import annotations

from math import prod
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from bundle.sparse.layout import CellLayout, HaloTable, Triple
from bundle.sparse.row_convolution import convolve_rows
from bundle.sparse.windows import high_widths

__all__ = ["convolve_blocks", "widen"]

#: up to this many sites per block, gathering neighbours beats a dense convolution over blocks (2^3, measured on a CPU)
_FEW_SITES = 8


def convolve_blocks(
    blocks: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    layout: CellLayout,
    block: Triple,
    stride: Triple,
    padding: Triple,
    dilation: Triple,
    groups: int,
) -> Tensor:
    """Convolves ``[N, C_in, d, h, w]``, the blocks of the visible cells, to ``[N, C_out, d/s, h/s, w/s]``.

    Equal to a dense convolution of the volume with absent sites zero, read off at the visible sites.

    Args:
        blocks: features, one block per visible cell.
        weight: ``[C_out, C_in / groups, kd, kh, kw]``.
        bias: ``[C_out]`` or None.
        layout: which cells are visible.
        block: sites per cell and axis of the input.
        stride: must divide `block`.
        padding: as a dense layer's.
        dilation: as a dense layer's.
        groups: as a dense layer's.
    """
    if torch.is_autocast_enabled(blocks.device.type):  # a custom function must cast for itself
        dtype = torch.get_autocast_dtype(blocks.device.type)
        blocks, weight, bias = blocks.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)
    kernel = weight.shape[2:]
    if all(k == 1 for k in kernel) and all(s == 1 for s in stride) and not any(padding):
        return F.conv3d(blocks, weight, bias, groups=groups)
    keeps_size = all(s == 1 for s in stride) and all(2 * p == d * (k - 1) for p, d, k in zip(padding, dilation, kernel))
    if keeps_size and groups == 1 and prod(block) <= _FEW_SITES:
        return convolve_rows(blocks, weight, bias, layout, block, dilation)
    tables = _Tables(layout, block, tuple(kernel), stride, padding, dilation)
    return _BlockConvolution.apply(blocks, weight, bias, tables, stride, dilation, groups)


class _Tables:
    """The halo widths of one convolution's forward and backward, and their tables (kept by the layout)."""

    def __init__(
        self,
        layout: CellLayout,
        block: Triple,
        kernel: tuple[int, ...],
        stride: Triple,
        padding: Triple,
        dilation: Triple,
    ) -> None:
        reach = [d * (k - 1) for k, d in zip(kernel, dilation)]
        self.layout, self.block, self.stride = layout, block, stride
        self.out_block = _triple(b // s for b, s in zip(block, stride))
        # output o reads inputs o*s - p ... o*s - p + reach
        self.low = padding
        self.high = high_widths(_triple(kernel), stride, padding, dilation)
        # input i is read by outputs (i + p - reach) / s ... (i + p) / s
        self.grad_low = _triple((r - p) // s if r > p else 0 for r, p, s in zip(reach, padding, stride))
        self.grad_high = _triple(
            (b - 1 + p) // s - (o - 1) for b, p, s, o in zip(block, padding, stride, self.out_block)
        )
        # site i of the input is place i + p + grad_low * s of the transposed convolution over the widened gradient
        self.grad_shift = _triple(p + lo * s for p, lo, s in zip(padding, self.grad_low, stride))

    @property
    def forward(self) -> HaloTable:
        return self.layout.halo(self.block, self.low, self.high)

    @property
    def backward(self) -> HaloTable:
        return self.layout.halo(self.out_block, self.grad_low, self.grad_high)


class _BlockConvolution(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        blocks: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        tables: _Tables,
        stride: Triple,
        dilation: Triple,
        groups: int,
    ) -> Tensor:
        ctx.save_for_backward(blocks, weight)
        ctx.tables, ctx.arguments, ctx.has_bias = tables, (stride, dilation, groups), bias is not None
        return F.conv3d(widen(blocks, tables.forward), _channels_last(weight), bias, stride, 0, dilation, groups)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        blocks, weight = ctx.saved_tensors
        tables, (stride, dilation, groups) = ctx.tables, ctx.arguments
        grad_blocks = grad_weight = grad_bias = None
        if ctx.needs_input_grad[0]:
            wide = widen(grad, tables.backward)
            grad_blocks = _transposed(wide, weight, tables, stride, dilation, groups)
        if ctx.needs_input_grad[1] or (ctx.has_bias and ctx.needs_input_grad[2]):
            _, grad_weight, grad_bias = torch.ops.aten.convolution_backward(
                _channels_last(grad),
                widen(blocks, tables.forward),
                weight,
                [weight.shape[0]] if ctx.has_bias else None,
                stride,
                [0, 0, 0],
                dilation,
                False,
                [0, 0, 0],
                groups,
                [False, True, ctx.has_bias],
            )
        return grad_blocks, grad_weight, grad_bias, None, None, None, None


def _transposed(wide: Tensor, weight: Tensor, tables: _Tables, stride: Triple, dilation: Triple, groups: int) -> Tensor:
    """The input's gradient: a transposed convolution of the widened output gradient, cut to the block."""
    crop = tables.grad_shift
    full = [
        (n - 1) * s + d * (k - 1) + 1 - 2 * c
        for n, s, d, k, c in zip(wide.shape[2:], stride, dilation, weight.shape[2:], crop)
    ]
    extra = [max(b - f, 0) for b, f in zip(tables.block, full)]  # sites past the last one that any output read
    grad = F.conv_transpose3d(wide, _channels_last(weight), None, stride, crop, extra, groups, dilation)
    d, h, w = tables.block
    return grad[:, :, :d, :h, :w]


def widen(blocks: Tensor, table: HaloTable, absent: float = 0.0) -> Tensor:
    """``[N, C, d, h, w]`` -> ``[N, C, *table.block]`` by gathering rows of channels; `absent` where no site is."""
    n, channels = blocks.shape[:2]
    rows = blocks.permute(0, 2, 3, 4, 1).reshape(-1, channels)
    wide = rows.index_select(0, table.rows).index_fill_(0, table.absent, absent)
    return wide.view(n, *table.block, channels).permute(0, 4, 1, 2, 3)


def _channels_last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last_3d)


def _triple(values: Any) -> Triple:
    a, b, c = values
    return a, b, c
