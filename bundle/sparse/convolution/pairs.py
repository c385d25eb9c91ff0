# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""Submanifold convolution by kernel maps: for each place of the kernel, one product over the pairs that exist.

Where blocks are small, many of a site's neighbours lie in absent cells or outside the volume. Gathering, for each place
of the kernel, only the outputs whose input is visible leaves those out of the arithmetic, which a dense convolution
over zeros cannot (the gather-multiply-scatter of Graham et al. 2018, arXiv:1711.10275, and Choy et al. 2019,
arXiv:1904.08755). It is many small steps, so it is for a CPU.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from bundle.cells import Triple
from bundle.sparse.convolution.kernel_maps import PairTable, pair_table
from bundle.sparse.layout import CellLayout
from bundle.sparse.storage import blocks_to_rows, channels_last, rows_to_blocks
from bundle.sparse.windows import Window

__all__ = ["applies", "convolve_pairs"]


def applies(dtype: torch.dtype, cell_shape: Triple, window: Window) -> bool:
    """Whether the sum over the kernel's places is no rougher than the data type: half precision rounds it at each."""
    return dtype in {torch.float32, torch.float64}


def convolve_pairs(
    blocks: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    layout: CellLayout,
    cell_shape: Triple,
    window: Window,
    groups: int = 1,
) -> Tensor:
    """Takes and gives what `methods.convolve` does, with one group only."""
    out_shape = window.outputs(cell_shape)
    # the product leaves the function as a matrix: torch forbids in-place additions to a view made inside one
    rows = _PairConvolution.apply(
        blocks_to_rows(blocks), weight, bias, pair_table(layout, cell_shape, window), layout.count_sites(out_shape)
    )
    return rows_to_blocks(rows, out_shape)


class _PairConvolution(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, weight: Tensor, bias: Tensor | None, table: PairTable, sites: int) -> Tensor:
        ctx.save_for_backward(rows, weight)
        ctx.table = table
        out = rows.new_zeros(sites, len(weight)) if bias is None else bias.repeat(sites, 1)
        for outputs, inputs, matrix in zip(table.outputs, table.inputs, _matrices(weight)):
            out.index_add_(0, outputs, rows.index_select(0, inputs) @ matrix.T)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        rows, weight = ctx.saved_tensors
        table: PairTable = ctx.table
        grad_rows = torch.zeros_like(rows) if ctx.needs_input_grad[0] else None
        grad_weight = torch.empty_like(channels_last(weight)) if ctx.needs_input_grad[1] else None
        matrices = _matrices(weight)
        grad_matrices = matrices if grad_weight is None else _matrices(grad_weight)
        for outputs, inputs, matrix, grad_matrix in zip(table.outputs, table.inputs, matrices, grad_matrices):
            picked = grad.index_select(0, outputs)
            if grad_rows is not None:
                grad_rows.index_add_(0, inputs, picked @ matrix)
            if grad_weight is not None:
                torch.mm(picked.T, rows.index_select(0, inputs), out=grad_matrix)
        return grad_rows, grad_weight, grad.sum(0) if ctx.needs_input_grad[2] else None, None, None


def _matrices(weight: Tensor) -> tuple[Tensor, ...]:
    """``[C_out, C_in]`` for each place of the kernel: views of a weight that is stored channels last."""
    return channels_last(weight).permute(2, 3, 4, 0, 1).flatten(0, 2).unbind(0)
