# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""One set of features, three views: blocks, rows and dense. All conversions between them are here.

- *blocks* ``[N, C, d, h, w]``: the sites of each of the N visible cells, stored channels last;
- *rows* ``[N * d * h * w, C]``: the same memory as a matrix with one row per visible site;
- *dense* ``[B, C, D, H, W]``: the whole map, with something at absent sites.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from bundle.cells import Triple
from bundle.sparse.layout import CellLayout, HaloTable
from bundle.sparse.windows import Window

__all__ = [
    "blocks_to_dense",
    "blocks_to_rows",
    "channels_last",
    "dense_to_blocks",
    "empty_blocks",
    "frame",
    "rows_to_blocks",
    "widen",
    "zero_absent",
]

# ---- blocks and rows -------------------------------------------------------------------------------------------------


def blocks_to_rows(blocks: Tensor) -> Tensor:
    """``[N, C, d, h, w]`` -> ``[N * d * h * w, C]``, no copy if stored channels last."""
    return blocks.permute(0, 2, 3, 4, 1).reshape(-1, blocks.shape[1])


def rows_to_blocks(rows: Tensor, cell_shape: Triple) -> Tensor:
    """``[N * d * h * w, C]`` -> ``[N, C, d, h, w]``, a view, channels last."""
    return rows.view(-1, *cell_shape, rows.shape[1]).permute(0, 4, 1, 2, 3)


def channels_last(x: Tensor) -> Tensor:
    """The same tensor in channels-last order, no copy if it is already."""
    return x.contiguous(memory_format=torch.channels_last_3d)


def empty_blocks(like: Tensor, cells: int, channels: int, cell_shape: Triple) -> Tensor:
    """Blocks ``[cells, channels, *cell_shape]`` of `like`'s type and device, channels last, not yet written."""
    shape = (cells, channels, *cell_shape)
    return torch.empty(shape, dtype=like.dtype, device=like.device, memory_format=torch.channels_last_3d)


# ---- blocks and dense ------------------------------------------------------------------------------------------------


def blocks_to_dense(blocks: Tensor, layout: CellLayout, cell_shape: Triple, fill: Tensor | None = None) -> Tensor:
    """``[N, C, d, h, w]`` -> ``[B, C, D, H, W]``, channels last, with absent sites zero or `fill`, ``[C]``."""
    b, (gd, gh, gw), (d, h, w) = layout.batch, layout.grid, cell_shape
    every = blocks.new_zeros(()) if fill is None else fill.to(blocks.dtype)
    every = every.expand(b * gd * gh * gw, d, h, w, blocks.shape[1])
    every = every.index_copy(0, layout.cell_numbers, blocks.permute(0, 2, 3, 4, 1))
    dense = every.view(b, gd, gh, gw, d, h, w, -1).permute(0, 7, 1, 4, 2, 5, 3, 6)
    return dense.reshape(b, -1, gd * d, gh * h, gw * w)


def dense_to_blocks(dense: Tensor, layout: CellLayout, cell_shape: Triple) -> Tensor:
    """The visible cells' blocks ``[N, C, d, h, w]``, channels last, of ``[B, C, D, H, W]``."""
    (gd, gh, gw), (d, h, w) = layout.grid, cell_shape
    split = dense.reshape(*dense.shape[:2], gd, d, gh, h, gw, w).permute(0, 2, 4, 6, 3, 5, 7, 1)
    return channels_last(split[layout.cells.unbind(1)].permute(0, 4, 1, 2, 3))


def zero_absent(dense: Tensor, layout: CellLayout, cell_shape: Triple) -> Tensor:
    """``[B, C, D, H, W]`` with zeros at absent sites."""
    mask = layout.site_mask(cell_shape)
    return torch.where(mask, dense, dense.new_zeros(()))  # not a product: NaN times zero would be NaN


# ---- what a window reads beyond a block or a map ---------------------------------------------------------------------


def widen(rows: Tensor, table: HaloTable, absent: float = 0.0) -> Tensor:
    """Rows ``[N * d * h * w, C]`` -> blocks with their halo ``[cells, C, *table.shape]``, `absent` where no site is."""
    return rows_to_blocks(rows.index_select(0, table.rows).index_fill_(0, table.absent, absent), table.shape)


def frame(dense: Tensor, window: Window, value: float = 0.0) -> Tensor:
    """Pads a dense map by what windows read beyond it, so that ``sites / stride`` of them fit."""
    low, high = window.padding, window.high
    return F.pad(dense, (low[2], high[2], low[1], high[1], low[0], high[0]), value=value)
