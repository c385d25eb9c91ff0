# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""Blocks of visible cells seen as a matrix with one row per visible site."""

from __future__ import annotations

import torch
from torch import Tensor

from bundle.cells import Triple
from bundle.sparse.layout import CellLayout

__all__ = ["as_blocks", "as_rows", "blocks_of", "channels_last", "dense_of"]


def as_rows(blocks: Tensor) -> Tensor:
    """``[N, C, d, h, w]`` -> ``[N * d * h * w, C]``, no copy if stored channels last."""
    return blocks.permute(0, 2, 3, 4, 1).reshape(-1, blocks.shape[1])


def as_blocks(rows: Tensor, block: Triple) -> Tensor:
    """``[N * d * h * w, C]`` -> ``[N, C, d, h, w]``, a view, channels last."""
    return rows.view(-1, *block, rows.shape[1]).permute(0, 4, 1, 2, 3)


def channels_last(x: Tensor) -> Tensor:
    """The same tensor in channels-last order, no copy if it is already."""
    return x.contiguous(memory_format=torch.channels_last_3d)


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
