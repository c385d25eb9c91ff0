# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""Submanifold convolution in one program: the halo is read inside the matrix product, and no widened block is written.

An implicit matrix product on a GPU, in Triton (`bundle/kernels/`): a tile of sites times output channels sums over the
kernel's places and the input's channels, and reads each neighbour where it lies. Absent neighbours are zero. The
input's gradient is the same program over the output's gradient. The weight's gradient is summed over parts of the
sites, in float32 and always in the same order, so a run repeats bit for bit.
"""

from __future__ import annotations

import logging
from functools import cache, lru_cache
from importlib.util import find_spec
from itertools import product
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from bundle.cells import Triple, triple
from bundle.kernels.launch import convolve_rows, differentiate_weight, is_interpreted
from bundle.kernels.reads import Reads, SiteClass
from bundle.sparse.convolution.blocks import convolve_blocks
from bundle.sparse.layout import CellLayout
from bundle.sparse.storage import blocks_to_rows, rows_to_blocks
from bundle.sparse.windows import Window

__all__ = ["applies", "convolve_fused", "find_gradient_reads", "find_reads", "runs_on"]

logger = logging.getLogger(__name__)


def convolve_fused(
    blocks: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    layout: CellLayout,
    cell_shape: Triple,
    window: Window,
    groups: int = 1,
) -> Tensor:
    """Takes and gives what `methods.convolve` does, with one group only."""
    # the product leaves the function as a matrix: torch forbids in-place additions to a view made inside one
    rows = _FusedConvolution.apply(blocks_to_rows(blocks), weight, bias, layout, cell_shape, window)
    return rows_to_blocks(rows, window.outputs(cell_shape))


def applies(dtype: torch.dtype, cell_shape: Triple, window: Window) -> bool:
    """Whether the programs take the data type: a GPU's matrix products have no float64."""
    return dtype in {torch.float32, torch.bfloat16, torch.float16} or (dtype == torch.float64 and is_interpreted())


def runs_on(device: torch.device) -> bool:
    """Whether Triton is there and works on the device; with TRITON_INTERPRET=1 it works on all."""
    if not (is_interpreted() or device.type == "cuda") or not _has_triton():
        return False
    return is_interpreted() or _passes_trial(device)


@cache
def _has_triton() -> bool:
    return find_spec("triton") is not None


@cache
def _passes_trial(device: torch.device) -> bool:
    """Whether a small convolution runs and is right: Triton may lack a compiler, or know the GPU not yet."""
    try:
        apart = _compare_with_blocks(device)
    except RuntimeError as error:
        logger.warning("the method fused is left out: %s", error)
        return False
    if apart > 0.01:
        logger.warning("the method fused is left out: it computes wrong numbers on %s, %.3f off", device, apart)
        return False
    return True


def _compare_with_blocks(device: torch.device) -> float:
    """The largest distance between the two methods' results and gradients, relative to their length."""
    with torch.inference_mode(False), torch.enable_grad(), torch.autocast(device.type, enabled=False):
        visible = torch.tensor([True, False, True, True]).view(1, 1, 1, 2, 2)
        layout, window = CellLayout(visible.to(device)), Window((3, 3, 3), padding=(1, 1, 1))
        generator = torch.Generator().manual_seed(0)
        shapes = (len(layout), 16, 4, 4, 4), (16, 16, 3, 3, 3)
        tensors = [torch.randn(shape, generator=generator).to(device, torch.float16) for shape in shapes]
        results = []
        for function in (convolve_fused, convolve_blocks):
            leaves = [x.clone().requires_grad_() for x in tensors]
            out = function(leaves[0], leaves[1], None, layout, (4, 4, 4), window)
            results.append([out.detach(), *torch.autograd.grad(out, leaves, torch.ones_like(out))])
        return max(float((a - b).float().norm() / b.float().norm()) for a, b in zip(*results))


class _FusedConvolution(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        rows: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        layout: CellLayout,
        cell_shape: Triple,
        window: Window,
    ) -> Tensor:
        ctx.save_for_backward(rows, weight)
        ctx.where = layout, cell_shape, window
        reads = find_reads(cell_shape, window)
        return convolve_rows(rows, _by_place(weight), bias, layout.neighbour_cells(reads.before, reads.after), reads)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        rows, weight = ctx.saved_tensors
        layout, cell_shape, window = ctx.where
        grad_rows = grad_weight = grad_bias = None
        if ctx.needs_input_grad[0]:
            reads = find_gradient_reads(cell_shape, window)
            near = layout.neighbour_cells(reads.before, reads.after)
            grad_rows = convolve_rows(grad, _by_place(weight).transpose(0, 2), None, near, reads)
        if ctx.needs_input_grad[1]:
            reads = find_reads(cell_shape, window)
            near = layout.neighbour_cells(reads.before, reads.after)
            by_place = differentiate_weight(rows, grad, near, reads)
            grad_weight = by_place.view(*weight.shape[2:], *by_place.shape[1:]).permute(4, 3, 0, 1, 2)
        if ctx.needs_input_grad[2]:
            grad_bias = grad.sum(0)
        return grad_rows, grad_weight, grad_bias, None, None, None


def _by_place(weight: Tensor) -> Tensor:
    """``[C_out, K, C_in]``, no copy of a weight that is stored channels last."""
    return weight.permute(0, 2, 3, 4, 1).reshape(weight.shape[0], -1, weight.shape[1])


# ---- what is read ----------------------------------------------------------------------------------------------------


@lru_cache(maxsize=1024)
def find_reads(cell_shape: Triple, window: Window) -> Reads:
    """What each output reads of an input whose cells have `cell_shape` sites."""
    axes = [
        [(k, k * dilation - padding) for k in range(kernel)]
        for kernel, padding, dilation in zip(window.kernel, window.padding, window.dilation)
    ]
    one = SiteClass((0, 0, 0), _places(axes, window))
    return Reads(window.outputs(cell_shape), (1, 1, 1), cell_shape, window.stride, (one,))


@lru_cache(maxsize=1024)
def find_gradient_reads(cell_shape: Triple, window: Window) -> Reads:
    """What each input's gradient reads of the output's gradient: the outputs that read the input."""
    classes = []
    for first in product(*map(range, window.stride)):
        # output o reads input o * stride - padding + k * dilation
        ends = [
            [(k, i + padding - k * dilation) for k in range(kernel)]
            for i, kernel, padding, dilation in zip(first, window.kernel, window.padding, window.dilation)
        ]
        axes = [[(k, end // step) for k, end in axis if end % step == 0] for axis, step in zip(ends, window.stride)]
        classes.append(SiteClass(triple(first), _places(axes, window)))
    return Reads(cell_shape, window.stride, window.outputs(cell_shape), (1, 1, 1), tuple(classes))


def _places(axes: list[list[tuple[int, int]]], window: Window) -> tuple[tuple[Triple, int], ...]:
    """Of pairs (place of the kernel, source site) on each axis: all sources, each with its place of the kernel."""
    _, height, width = window.kernel
    return tuple(((z, y, x), (kz * height + ky) * width + kx) for (kz, z), (ky, y), (kx, x) in product(*axes))
