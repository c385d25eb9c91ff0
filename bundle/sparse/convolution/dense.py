# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""Submanifold convolution by way of the whole dense map: best where little is masked or gathers are dear."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from bundle.cells import Triple
from bundle.sparse.layout import CellLayout
from bundle.sparse.storage import blocks_to_dense, dense_to_blocks, frame
from bundle.sparse.windows import Window

__all__ = ["convolve_dense"]


def convolve_dense(
    blocks: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    layout: CellLayout,
    cell_shape: Triple,
    window: Window,
    groups: int = 1,
) -> Tensor:
    """Convolves ``[N, C_in, d, h, w]``, the blocks of the visible cells, to ``[N, C_out, d/s, h/s, w/s]``.

    Args:
        blocks: features, one block per visible cell.
        weight: ``[C_out, C_in / groups, kd, kh, kw]``.
        bias: ``[C_out]`` or None.
        layout: which cells are visible.
        cell_shape: sites per cell and axis of the input.
        window: what an output reads.
        groups: as a dense layer's.
    """
    framed = frame(blocks_to_dense(blocks, layout, cell_shape), window)
    dense = F.conv3d(framed, weight, bias, window.stride, 0, window.dilation, groups)
    return dense_to_blocks(dense, layout, window.outputs(cell_shape))
