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
    """Takes and gives what `methods.convolve` does, with any number of groups."""
    framed = frame(blocks_to_dense(blocks, layout, cell_shape), window)
    dense = F.conv3d(framed, weight, bias, window.stride, 0, window.dilation, groups)
    return dense_to_blocks(dense, layout, window.outputs(cell_shape))
