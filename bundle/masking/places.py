# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""Where a child lies in its parent: in what the parent could not see."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from bundle.cells import Triple, triple

__all__ = ["place_centre", "place_inside"]


def place_inside(
    hidden: Tensor, cell: Sequence[int], size: Triple, extent: Triple, generator: torch.Generator
) -> Triple | None:
    """The first corner of a child all of which lies in hidden cells, drawn evenly; None if there is no such place.

    Args:
        hidden: bool ``[d, h, w]`` on cells.
        cell: voxels of a cell on each axis.
        size: voxels of the parent.
        extent: voxels that the child covers.
        generator: all randomness comes from here.
    """
    spans = [_spans(*axis) for axis in zip(size, extent, cell)]
    before = F.pad(hidden.long().cumsum(0).cumsum(1).cumsum(2), (1, 0, 1, 0, 1, 0))  # hidden cells before a corner
    for axis, (first, end, _, _) in enumerate(spans):
        before = before.index_select(axis, end) - before.index_select(axis, first)  # those from first to end
    wanted, corners = (_products(values) for values in zip(*((end - first, count) for first, end, _, count in spans)))
    chances = torch.where(before == wanted, corners, 0).flatten().double()
    if not chances.any():
        return None
    drawn = torch.unravel_index(torch.multinomial(chances, 1, generator=generator)[0], before.shape)
    corner = []
    for (_, _, least, count), index in zip(spans, drawn):
        corner.append(int(least[index]) + int(torch.randint(int(count[index]), (1,), generator=generator)))
    return triple(corner)


def _spans(size: int, extent: int, cell: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The ranges of cells that a child may cover on an axis.

    The first cell and the one after the last, the least corner with that range, and how many corners have it.
    """
    corner = torch.arange(size - extent + 1)
    ranges = torch.stack([corner // cell, (corner + extent - 1) // cell + 1], 1)
    found, count = ranges.unique_consecutive(dim=0, return_counts=True)
    return found[:, 0], found[:, 1], count.cumsum(0) - count, count


def _products(axes: Sequence[Tensor]) -> Tensor:
    return axes[0][:, None, None] * axes[1][:, None] * axes[2]


def place_centre(
    hidden: Tensor, valid: Tensor, cell: Sequence[int], size: Triple, extent: Triple, generator: torch.Generator
) -> Triple:
    """The first corner of a child that lies in the parent and has its centre in a hidden cell.

    Where no hidden cell can hold a centre, because all lie too near the border, one of them changes places with a
    visible one that can: the tensor `hidden` is changed.
    """
    # per axis and cell: the corners that put the centre, corner + extent / 2, into it
    ranges = []
    for voxels, wide, width in zip(size, extent, cell):
        first = torch.arange(0, voxels, width)
        low = (first - wide / 2).ceil().clamp(min=0).long()
        high = ((first + width - wide / 2).ceil().long() - 1).clamp(max=voxels - wide)
        ranges.append((low, high))
    can = [high >= low for low, high in ranges]
    possible = can[0][:, None, None] & can[1][:, None] & can[2]
    if not (hidden & possible).any():
        if not (valid & possible).any():  # a volume of a few voxels in the corner of its crop: as near as can be
            middle = hidden.nonzero()[0] * torch.tensor(cell) + torch.tensor(cell) // 2 - torch.tensor(extent) // 2
            return triple(middle.clamp(min=0).minimum(torch.tensor(size) - torch.tensor(extent)).tolist())
        hidden[_draw_one(hidden, generator)] = False
        hidden[_draw_one(valid & possible, generator)] = True
    corner = []
    for (low, high), index in zip(ranges, _draw_one(hidden & possible, generator)):
        least, most = int(low[index]), int(high[index])
        corner.append(least + int(torch.randint(most - least + 1, (1,), generator=generator)))
    return triple(corner)


def _draw_one(cells: Tensor, generator: torch.Generator) -> Triple:
    """The place of one of the cells that are True, drawn evenly."""
    places = cells.nonzero()
    return triple(places[int(torch.randint(len(places), (1,), generator=generator))].tolist())
