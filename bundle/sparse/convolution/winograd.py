# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""What the two convolutions by Winograd's algorithm share: the matrices, and the gradients from two functions.

Four outputs of a filter of three taps need six products instead of twelve, F(4, 3) of Lavin & Gray 2016,
arXiv:1509.09308, section 4.1: ``y = A' ((G w) * (B' x))``, and the same along each further axis. The matrices are
Cook and Toom's for the points 0, 1, -1, 1/2, -2 and infinity, which round five times less than the paper's +-2
(Barabasz et al. 2020, arXiv:1803.10986). oneDNN has nothing like it in three dimensions, so it is for a CPU.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from bundle.cells import Triple
from bundle.sparse.layout import CellLayout
from bundle.sparse.storage import blocks_to_rows
from bundle.sparse.windows import Window

__all__ = ["INPUT", "KERNEL", "OUT", "OUTPUT", "READ", "Algorithm", "applies", "apply", "tiles_fill"]

#: outputs of one tile, and what they read, which is also the number of products
OUT, READ = 4, 6

#: ``B'``, ``[6, 6]``
INPUT = torch.tensor([
    [1, -1.5, -2, 1.5, 1, 0], [0, -1, 0.5, 2.5, 1, 0], [0, 1, -2.5, 0.5, 1, 0], [0, -2, -1, 2, 1, 0],
    [0, 0.5, -1, -0.5, 1, 0], [0, 1, -1.5, -2, 1.5, 1],
], dtype=torch.float64)  # fmt: skip
#: ``G``, ``[6, 3]``
KERNEL = torch.tensor([
    [1, 0, 0], [1 / 3, 1 / 3, 1 / 3], [-1 / 3, 1 / 3, -1 / 3], [-16 / 15, -8 / 15, -4 / 15], [1 / 15, -2 / 15, 4 / 15],
    [0, 0, 1],
], dtype=torch.float64)  # fmt: skip
#: ``A'``, ``[4, 6]``
OUTPUT = torch.tensor([
    [1, 1, 1, 1, 1, 0], [0, 1, -1, 1 / 2, -2, 0], [0, 1, 1, 1 / 4, 4, 0], [0, 1, -1, 1 / 8, -8, 1],
], dtype=torch.float64)  # fmt: skip


class Algorithm(NamedTuple):
    """A convolution whose gradient for the input is itself, with the kernel reversed."""

    #: of blocks ``[N, C_in, d, h, w]``, weight, layout, cell shape and window: ``[N, C_out, d, h, w]``
    convolve: Callable[[Tensor, Tensor, CellLayout, Triple, Window], Tensor]
    #: of blocks, the output's gradient, weight, layout, cell shape and window: the weight's gradient
    weight_gradient: Callable[[Tensor, Tensor, Tensor, CellLayout, Triple, Window], Tensor]


def applies(dtype: torch.dtype, cell_shape: Triple, window: Window, axes: int) -> bool:
    """Whether tiles fill the first `axes` axes, in a data type whose rounding the transforms do not raise."""
    return dtype in {torch.float32, torch.float64} and tiles_fill(cell_shape, window, axes)


def tiles_fill(cell_shape: Triple, window: Window, axes: int) -> bool:
    """Whether the first `axes` axes have three taps, and tiles of four outputs fill a block along them."""
    whole = all(kernel == 3 and b % OUT == 0 for kernel, b in zip(window.kernel[:axes], cell_shape))
    return whole and window.keeps_size and window.dilation == (1, 1, 1)


def apply(
    algorithm: Algorithm,
    blocks: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    layout: CellLayout,
    cell_shape: Triple,
    window: Window,
) -> Tensor:
    """The algorithm's convolution, plus the bias, for autograd."""
    return _Convolution.apply(blocks, weight, bias, algorithm, layout, cell_shape, window)


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        blocks: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        algorithm: Algorithm,
        layout: CellLayout,
        cell_shape: Triple,
        window: Window,
    ) -> Tensor:
        ctx.save_for_backward(blocks, weight)
        ctx.algorithm, ctx.where, ctx.has_bias = algorithm, (layout, cell_shape, window), bias is not None
        out = algorithm.convolve(blocks, weight, layout, cell_shape, window)
        return out if bias is None else out.add_(bias.view(1, -1, 1, 1, 1))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        blocks, weight = ctx.saved_tensors
        grad_blocks = grad_weight = grad_bias = None
        if ctx.needs_input_grad[0]:  # a centred window reads backwards what it reads forwards
            grad_blocks = ctx.algorithm.convolve(grad, weight.flip(2, 3, 4).transpose(0, 1), *ctx.where)
        if ctx.needs_input_grad[1]:
            grad_weight = ctx.algorithm.weight_gradient(blocks, grad, weight, *ctx.where)
        if ctx.has_bias and ctx.needs_input_grad[2]:
            grad_bias = blocks_to_rows(grad).sum(0)
        return grad_blocks, grad_weight, grad_bias, None, None, None, None
