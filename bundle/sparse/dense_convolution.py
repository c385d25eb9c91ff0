# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""Submanifold convolution by way of the whole dense map: best where little is masked or gathers are dear."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from bundle.sparse.layout import CellLayout, Triple
from bundle.sparse.windows import Window

__all__ = ["blocks_of", "convolve_dense", "dense_of", "frame"]


def convolve_dense(
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
    framed = frame(dense_of(blocks, layout, block), window)
    d, h, w = (b // s for b, s in zip(block, window.stride))
    return blocks_of(F.conv3d(framed, weight, bias, window.stride, 0, window.dilation, groups), layout, (d, h, w))


def dense_of(blocks: Tensor, layout: CellLayout, block: Triple, fill: Tensor | None = None) -> Tensor:
    """``[N, C, d, h, w]`` -> ``[B, C, D, H, W]``, channels last, with absent sites zero or `fill`, ``[C]``."""
    b, (gd, gh, gw), (d, h, w) = layout.batch, layout.grid, block
    every = blocks.new_zeros(()) if fill is None else fill.to(blocks.dtype)
    every = every.expand(b * gd * gh * gw, d, h, w, blocks.shape[1])
    every = every.index_copy(0, layout.cell_numbers, blocks.permute(0, 2, 3, 4, 1))
    dense = every.view(b, gd, gh, gw, d, h, w, -1).permute(0, 7, 1, 4, 2, 5, 3, 6)
    return dense.reshape(b, -1, gd * d, gh * h, gw * w)


def blocks_of(dense: Tensor, layout: CellLayout, block: Triple) -> Tensor:
    """The visible cells' blocks ``[N, C, d, h, w]``, channels last, of ``[B, C, D, H, W]``."""
    (gd, gh, gw), (d, h, w) = layout.grid, block
    split = dense.reshape(*dense.shape[:2], gd, d, gh, h, gw, w).permute(0, 2, 4, 6, 3, 5, 7, 1)
    return split[layout.visible].permute(0, 4, 1, 2, 3)


def frame(x: Tensor, window: Window, value: float = 0.0) -> Tensor:
    """Pads `x` by what windows read beyond it, so that ``sites / stride`` of them fit."""
    low, high = window.padding, window.high
    return F.pad(x, (low[2], high[2], low[1], high[1], low[0], high[0]), value=value)
