# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""Blocks of visible cells seen as a matrix with one row per visible site."""

from __future__ import annotations

import torch
from torch import Tensor

from bundle.sparse.layout import Triple

__all__ = ["as_blocks", "as_rows", "channels_last"]


def as_rows(blocks: Tensor) -> Tensor:
    """``[N, C, d, h, w]`` -> ``[N * d * h * w, C]``, no copy if stored channels last."""
    return blocks.permute(0, 2, 3, 4, 1).reshape(-1, blocks.shape[1])


def as_blocks(rows: Tensor, block: Triple) -> Tensor:
    """``[N * d * h * w, C]`` -> ``[N, C, d, h, w]``, a view, channels last."""
    return rows.view(-1, *block, rows.shape[1]).permute(0, 4, 1, 2, 3)


def channels_last(x: Tensor) -> Tensor:
    """The same tensor in channels-last order, no copy if it is already."""
    return x.contiguous(memory_format=torch.channels_last_3d)
