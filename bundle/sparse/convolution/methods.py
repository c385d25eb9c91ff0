# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""Submanifold convolution over the blocks of the visible cells: which of the ways to compute it, and when.

A new way is a function with the arguments of those in `METHODS`, a line there, and if it is to be used unasked a case
in `usual_method`.
"""

from __future__ import annotations

from collections.abc import Callable
from math import prod

import torch
import torch.nn.functional as F
from torch import Tensor

from bundle.cells import Triple
from bundle.sparse.convolution.blocks import convolve_blocks
from bundle.sparse.convolution.dense import convolve_dense
from bundle.sparse.convolution.pairs import convolve_pairs
from bundle.sparse.convolution.rows import convolve_rows
from bundle.sparse.convolution.winograd import OUT, tiles_fill
from bundle.sparse.convolution.winograd_cubes import convolve_winograd_cubes
from bundle.sparse.convolution.winograd_depth import convolve_winograd_depth
from bundle.sparse.layout import CellLayout
from bundle.sparse.windows import Window

__all__ = ["METHODS", "applicable", "convolve", "usual_method"]

METHODS: dict[str, Callable[..., Tensor]] = {
    "blocks": convolve_blocks,
    "rows": convolve_rows,
    "pairs": convolve_pairs,
    "dense": convolve_dense,
    "winograd depth": convolve_winograd_depth,
    "winograd cubes": convolve_winograd_cubes,
}

_WITH_GROUPS = {"blocks", "dense"}


def convolve(
    blocks: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    layout: CellLayout,
    block: Triple,
    window: Window,
    groups: int = 1,
    method: str | None = None,
) -> Tensor:
    """Convolves ``[N, C_in, d, h, w]``, the blocks of the visible cells, to ``[N, C_out, d/s, h/s, w/s]``.

    Equal to a dense convolution of the volume with absent sites zero, read off at the visible sites.

    Args:
        blocks: features, one block per visible cell.
        weight: ``[C_out, C_in / groups, kd, kh, kw]``.
        bias: ``[C_out]`` or None.
        layout: which cells are visible.
        block: sites per cell and axis of the input.
        window: what an output reads; its stride must divide `block`.
        groups: as a dense layer's.
        method: of `METHODS`; None takes the one that is usually fastest.
    """
    if torch.is_autocast_enabled(blocks.device.type):  # a custom function must cast for itself
        dtype = torch.get_autocast_dtype(blocks.device.type)
        blocks, weight, bias = blocks.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)
    if window.is_pointwise:
        return F.conv3d(blocks, weight, bias, groups=groups)
    if method is None:
        method = usual_method(blocks, block, window, groups)
    if method in _WITH_GROUPS:
        return METHODS[method](blocks, weight, bias, layout, block, window, groups)
    return METHODS[method](blocks, weight, bias, layout, block, window)


def applicable(dtype: torch.dtype, block: Triple, window: Window, groups: int) -> list[str]:
    """The methods that can compute a convolution of this kind, and do so to the data type's own rounding."""
    whole = dtype in {torch.float32, torch.float64}
    can = {
        "rows": window.keeps_size,
        "winograd depth": whole and tiles_fill(block, window, axes=1),
        "winograd cubes": whole and tiles_fill(block, window, axes=3),
    }
    return [m for m in METHODS if can.get(m, True) and (groups == 1 or m in _WITH_GROUPS)]


def usual_method(blocks: Tensor, block: Triple, window: Window, groups: int) -> str:
    """The method that is usually fastest, as measured on a CPU with 3x3x3 kernels (the executor `auto` measures)."""
    sites, channels = prod(block) // prod(window.stride), blocks.shape[1]
    # on a GPU for few launches; in half precision because each place of the kernel would round the sum
    in_one_go = blocks.device.type != "cpu" or blocks.dtype not in {torch.float32, torch.float64}
    if groups == 1 and not in_one_go:
        # a tile of four sites per axis costs what it saves unless there are as many as a third of the channels
        if channels >= 32 and tiles_fill(block, window, axes=3) and 3 * len(blocks) * sites >= OUT**3 * channels:
            return "winograd cubes"
        if sites <= 64 and channels >= 128:
            return "pairs"
        if channels >= 32 and channels * block[0] >= 512 and tiles_fill(block, window, axes=1):
            return "winograd depth"
    if groups == 1 and sites <= 8 and window.keeps_size:
        return "rows"
    return "blocks"
