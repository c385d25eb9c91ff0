# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""Cells: the blocks of voxels that masks, losses and the sparse encoder count in."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["Triple", "axis_numbers", "from_cells", "send", "synchronize", "to_cells", "triple", "valid_cells"]

#: one whole number per axis of a volume
Triple = tuple[int, int, int]


def triple(value: int | Iterable[int]) -> Triple:
    """One number per axis, as torch's layers take it: a number, a sequence of one, or a sequence of three."""
    values = (value,) if isinstance(value, int) else tuple(int(v) for v in value)
    a, b, c = values * 3 if len(values) == 1 else values
    return a, b, c


def valid_cells(valid: torch.Tensor, cell: Sequence[int]) -> torch.Tensor:
    """Which cells have data: at least half as many valid voxels as the sample's fullest cell.

    Args:
        valid: bool ``[B, 1, D, H, W]`` on voxels.
        cell: voxels of a cell on each axis.

    Returns:
        bool ``[B, 1, d, h, w]`` on cells.
    """
    share = F.avg_pool3d(valid.float(), tuple(cell))
    return (share > 0) & (share >= share.amax(dim=(1, 2, 3, 4), keepdim=True) / 2)


def to_cells(x: Tensor, cell: Sequence[int]) -> Tensor:
    """``[B, C, D, H, W]`` -> ``[B, cells, C, voxels of a cell]``, cells in raster order."""
    b, c, d, h, w = x.shape
    cd, ch, cw = cell
    x = x.reshape(b, c, d // cd, cd, h // ch, ch, w // cw, cw).permute(0, 2, 4, 6, 1, 3, 5, 7)
    return x.reshape(b, -1, c, cd * ch * cw)


def from_cells(x: Tensor, size: Sequence[int], cell: Sequence[int]) -> Tensor:
    """The inverse of `to_cells` for a volume of `size` voxels per axis."""
    (d, h, w), (cd, ch, cw), (b, _, c, _) = size, cell, x.shape
    x = x.view(b, d // cd, h // ch, w // cw, c, cd, ch, cw).permute(0, 4, 1, 5, 2, 6, 3, 7)
    return x.reshape(b, c, d, h, w)


def send(x: Tensor, device: torch.device) -> Tensor:
    """The tensor on the device. From the CPU to a GPU the host does not wait for it."""
    if x.device.type != "cpu" or device.type != "cuda":
        return x.to(device)
    return x.pin_memory().to(device, non_blocking=True)


def synchronize(device: torch.device) -> None:
    """Waits until a GPU has done what it was given: for measuring times. A CPU has always done it."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def axis_numbers(like: Tensor, numbers: Sequence[float]) -> Tensor:
    """A few numbers as a vector of `like`'s type and device, made there: to copy them would make the host wait."""
    return torch.stack([like.new_full((), number) for number in numbers])
