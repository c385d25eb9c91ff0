# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""Submanifold convolution where blocks are a few sites: gather every site's neighbours, then one matrix product.

A block of one or two sites per axis is mostly halo, and a dense convolution over many tiny blocks keeps few channels
of many in cache; the matrix product of ``[sites, neighbours * C_in]`` with the weight does neither. It sums in one go,
so half precision loses nothing, and it is three launches on a GPU.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from bundle.cells import Triple
from bundle.sparse.convolution.kernel_maps import NeighbourTable, neighbour_table
from bundle.sparse.layout import CellLayout
from bundle.sparse.storage import blocks_to_rows, rows_to_blocks
from bundle.sparse.windows import Window

__all__ = ["applies", "convolve_rows"]


def convolve_rows(
    blocks: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    layout: CellLayout,
    cell_shape: Triple,
    window: Window,
    groups: int = 1,
) -> Tensor:
    """Takes and gives what `methods.convolve` does, with one group and a window that keeps the size only."""
    # the product leaves the function as a matrix: torch forbids in-place additions to a view made inside one
    rows = _RowConvolution.apply(blocks_to_rows(blocks), weight, bias, neighbour_table(layout, cell_shape, window))
    return rows_to_blocks(rows, cell_shape)


def applies(dtype: torch.dtype, cell_shape: Triple, window: Window) -> bool:
    """Whether the window keeps the map's size."""
    return window.keeps_size


class _RowConvolution(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, weight: Tensor, bias: Tensor | None, table: NeighbourTable) -> Tensor:
        ctx.save_for_backward(rows, weight)
        ctx.table = table
        # [C_out, kd, kh, kw, C_in]: no copy of a weight that is stored channels last
        matrix = weight.permute(0, 2, 3, 4, 1).reshape(weight.shape[0], -1)
        return torch.nn.functional.linear(_neighbours(rows, table.rows, table.absent), matrix, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        rows, weight = ctx.saved_tensors
        table: NeighbourTable = ctx.table
        grad_rows = grad_weight = grad_bias = None
        if ctx.needs_input_grad[0]:
            # the site that reads i as its k-th neighbour is i's neighbour opposite to k
            matrix = weight.permute(2, 3, 4, 0, 1).reshape(-1, weight.shape[1])
            grad_rows = _neighbours(grad, table.opposite_rows, table.opposite_absent) @ matrix
        if ctx.needs_input_grad[1]:
            product = grad.T @ _neighbours(rows, table.rows, table.absent)
            grad_weight = product.view(len(product), *weight.shape[2:], -1).permute(0, 4, 1, 2, 3)
        if ctx.needs_input_grad[2]:
            grad_bias = grad.sum(0)
        return grad_rows, grad_weight, grad_bias, None


def _neighbours(sites: Tensor, rows: Tensor, absent: Tensor) -> Tensor:
    """``[sites, C]`` -> ``[sites, K * C]``: each site's neighbours' channels, absent ones zero."""
    return sites.index_select(0, rows).index_fill_(0, absent, 0.0).view(len(sites), -1)
