# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""Submanifold convolution where blocks are a few sites: gather every site's neighbours, then one matrix product.

A block of one or two sites per axis is mostly halo, and a dense convolution over many tiny blocks keeps few channels
of many in cache; the matrix product of ``[sites, neighbours * C_in]`` with the weight does neither.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from bundle.sparse.layout import CellLayout, NeighbourTable, Triple

__all__ = ["convolve_rows"]


def convolve_rows(
    blocks: Tensor, weight: Tensor, bias: Tensor | None, layout: CellLayout, block: Triple, dilation: Triple
) -> Tensor:
    """Convolves ``[N, C_in, d, h, w]`` to ``[N, C_out, d, h, w]`` with stride 1 and padding that keeps the size.

    Args:
        blocks: features, one block per visible cell.
        weight: ``[C_out, C_in, kd, kh, kw]``, every k odd.
        bias: ``[C_out]`` or None.
        layout: which cells are visible.
        block: sites per cell and axis.
        dilation: as a dense layer's.
    """
    kd, kh, kw = weight.shape[2:]
    # the product leaves the function as a matrix: torch forbids in-place additions to a view made inside one
    rows = _RowConvolution.apply(blocks, weight, bias, layout.neighbours(block, (kd, kh, kw), dilation))
    return _blocks(rows, blocks.shape)


class _RowConvolution(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, blocks: Tensor, weight: Tensor, bias: Tensor | None, table: NeighbourTable) -> Tensor:
        ctx.save_for_backward(blocks, weight)
        ctx.table = table
        # [C_out, kd, kh, kw, C_in]: no copy of a weight that is stored channels last
        matrix = weight.permute(0, 2, 3, 4, 1).reshape(weight.shape[0], -1)
        return torch.nn.functional.linear(_neighbours(_rows(blocks), table.rows, table.absent), matrix, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        blocks, weight = ctx.saved_tensors
        table: NeighbourTable = ctx.table
        grad_blocks = grad_weight = grad_bias = None
        if ctx.needs_input_grad[0]:
            # the site that reads i as its k-th neighbour is i's neighbour opposite to k
            matrix = weight.permute(2, 3, 4, 0, 1).reshape(-1, weight.shape[1])
            gathered = _neighbours(grad, table.opposite_rows, table.opposite_absent)
            grad_blocks = _blocks(gathered @ matrix, blocks.shape)
        if ctx.needs_input_grad[1]:
            product = grad.T @ _neighbours(_rows(blocks), table.rows, table.absent)
            grad_weight = product.view(len(product), *weight.shape[2:], -1).permute(0, 4, 1, 2, 3)
        if ctx.needs_input_grad[2]:
            grad_bias = grad.sum(0)
        return grad_blocks, grad_weight, grad_bias, None


def _neighbours(sites: Tensor, rows: Tensor, absent: Tensor) -> Tensor:
    """``[sites, C]`` -> ``[sites, K * C]``: each site's neighbours' channels, absent ones zero."""
    return sites.index_select(0, rows).index_fill_(0, absent, 0.0).view(len(sites), -1)


def _rows(blocks: Tensor) -> Tensor:
    """``[N, C, d, h, w]`` -> ``[sites, C]``, no copy if stored channels last."""
    return blocks.permute(0, 2, 3, 4, 1).reshape(-1, blocks.shape[1])


def _blocks(rows: Tensor, shape: torch.Size) -> Tensor:
    n, _, d, h, w = shape
    return rows.view(n, d, h, w, -1).permute(0, 4, 1, 2, 3)
