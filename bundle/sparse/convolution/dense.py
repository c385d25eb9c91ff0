# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""Submanifold convolution by way of the whole dense map: best where little is masked or gathers are dear."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from bundle.cells import Triple
from bundle.sparse.layout import CellLayout
from bundle.sparse.storage import blocks_of, dense_of
from bundle.sparse.windows import Window

__all__ = ["convolve_dense", "frame"]


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


def frame(x: Tensor, window: Window, value: float = 0.0) -> Tensor:
    """Pads `x` by what windows read beyond it, so that ``sites / stride`` of them fit."""
    low, high = window.padding, window.high
    return F.pad(x, (low[2], high[2], low[1], high[1], low[0], high[0]), value=value)
