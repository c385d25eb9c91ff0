# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""Where the sites of a widened block lie: for every cell and every mask alike, so found once per process.

What is left to do for each mask is one addition and two reads of tables. That matters on a GPU, where the host starts
some thousand small programs for a step, and a table of its own takes more of them than its convolution.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from bundle.cells import Triple, triple

__all__ = ["Places", "find_places"]


@dataclass(frozen=True)
class Places:
    """The ``P`` sites of a block that is widened by a halo, in raster order.

    Attributes:
        reach: how many cells away a site may lie, on each axis.
        steps: ``[P]`` int64, from a cell's number to that of the cell in which the site lies, where cells are numbered
            in a grid with `reach` more cells at each end of each axis.
        rows: ``[P]`` int64, the site's number within that cell.
        shape: sites per axis, ``P`` in all.
    """

    reach: Triple
    steps: Tensor
    rows: Tensor
    shape: Triple


#: by all that `find_places` is given
_FOUND: dict[tuple[object, ...], Places] = {}
#: a training needs some dozen; whole volumes, each with a grid of its own, would fill the memory
_MOST = 1024


def find_places(cell_shape: Triple, low: Triple, high: Triple, grid: Triple, device: torch.device) -> Places:
    """The places of a block's sites, widened by `low` sites before and `high` sites after it.

    Args:
        cell_shape: sites per cell and axis.
        low: sites before the block; a negative number leaves out as many.
        high: sites after the block.
        grid: cells per axis.
        device: of the tables.
    """
    key = (cell_shape, low, high, grid, device)
    if key in _FOUND:
        return _FOUND[key]
    with torch.inference_mode(False):  # a table made in that mode could serve no gradient later
        found = _find(cell_shape, low, high, grid, device)
    if type(found.steps) is Tensor:  # one that only pretends to be a tensor belongs to who pretends
        if len(_FOUND) >= _MOST:
            _FOUND.clear()
        _FOUND[key] = found
    return found


def _find(cell_shape: Triple, low: Triple, high: Triple, grid: Triple, device: torch.device) -> Places:
    places = [range(-lo, b + hi) for b, lo, hi in zip(cell_shape, low, high)]
    reach = triple(max((abs(s // b) for s in axis), default=0) for axis, b in zip(places, cell_shape))
    # per axis: the sites, the cell they lie in relative to this one, the place inside it
    sites = [torch.arange(axis.start, axis.stop, device=device) for axis in places]
    steps = [torch.div(s, b, rounding_mode="floor") for s, b in zip(sites, cell_shape)]
    inside = [s - step * b for s, step, b in zip(sites, steps, cell_shape)]
    padded = triple(g + 2 * r for g, r in zip(grid, reach))
    shape = triple(len(axis) for axis in places)
    return Places(reach, _number(steps, padded), _number(inside, cell_shape), shape)


def _number(axes: list[Tensor], size: Triple) -> Tensor:
    """``[P]``: the numbers of places in a grid of that size, in raster order."""
    z, y, x = axes
    return ((z[:, None, None] * size[1] + y[:, None]) * size[2] + x).flatten()
