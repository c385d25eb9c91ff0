# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""The `auto` executor: every convolution runs the way that was fastest when one like it was first met."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from bundle.cells import Triple, synchronize
from bundle.sparse.convolution.methods import applicable, convolve
from bundle.sparse.executors.cells import CellsVolume
from bundle.sparse.layout import CellLayout
from bundle.sparse.windows import Window

__all__ = ["AutoVolume"]

logger = logging.getLogger(__name__)

#: what was fastest for convolutions met so far: by the methods that apply, device, data type, channels, window,
#: groups, cell shape, about how many cells of how many; kept for the life of the process
_FASTEST: dict[tuple[object, ...], str] = {}


class AutoVolume(CellsVolume, executor="auto"):
    """Stores what `cells` stores and picks each convolution's method by its measured cost, forward and backward.

    Among the methods is the dense convolution that `masked` runs, so a level at which little is masked may run densely.
    All methods agree to rounding, but a second run may pick others: for results that are the same bit for bit, choose
    `cells`. MinkowskiEngine is not tried; it was the slowest wherever it was measured (scripts/benchmarks/speed.md).
    """

    def convolve_blocks(
        self, blocks: Tensor, weight: Tensor, bias: Tensor | None, window: Window, groups: int
    ) -> Tensor:
        method = None
        if not window.is_pointwise:
            method = fastest(blocks, weight, self.layout, self.cell_shape, window, groups)
        return convolve(blocks, weight, bias, self.layout, self.cell_shape, window, groups, method)


def fastest(blocks: Tensor, weight: Tensor, layout: CellLayout, cell_shape: Triple, window: Window, groups: int) -> str:
    """The method with the least time forward and backward for a convolution like this one, measured once."""
    share = round(8 * len(layout) / layout.visible.numel())  # eighths of the cells visible
    size = (len(layout) - 1).bit_length()  # twice the cells is another case
    half = torch.get_autocast_dtype(blocks.device.type) if torch.is_autocast_enabled(blocks.device.type) else None
    dtype = blocks.dtype if half is None or blocks.dtype == torch.float64 else half
    methods = tuple(applicable(dtype, cell_shape, window, groups, blocks.device))
    key = (methods, blocks.device, dtype, tuple(weight.shape), window, groups, cell_shape, share, size)
    if key not in _FASTEST:
        times = {}
        for method in methods:
            both_ways = partial(_both_ways, blocks, weight, layout, cell_shape, window, groups, method)
            try:
                times[method] = _seconds(both_ways, blocks.device)
            except RuntimeError as error:  # out of memory, or a kernel that the device cannot run: the others count
                logger.warning("convolution %s: the method %s is left out: %s", list(weight.shape), method, error)
        if not times:
            return methods[0]  # which says why it cannot; another time more may be possible
        _FASTEST[key] = min(times, key=lambda method: times[method])
        timings = ", ".join(f"{method} {1000 * t:.1f} ms" for method, t in times.items())
        logger.debug("convolution %s over cells of %s sites: %s", list(weight.shape), cell_shape, timings)
    return _FASTEST[key]


def _both_ways(
    blocks: Tensor, weight: Tensor, layout: CellLayout, cell_shape: Triple, window: Window, groups: int, method: str
) -> None:
    # nothing of this is saved by hooks that are set, such as those of activation checkpointing, and in inference it can
    # be measured as well
    unhooked = torch.autograd.graph.saved_tensors_hooks(lambda x: x, lambda x: x)
    with torch.inference_mode(False), torch.enable_grad(), unhooked:
        blocks, weight = (x.clone() if x.is_inference() else x for x in (blocks, weight))
        blocks, weight = blocks.detach().requires_grad_(), weight.detach().requires_grad_()
        out = convolve(blocks, weight, None, layout, cell_shape, window, groups, method)
        torch.autograd.grad(out, (blocks, weight), torch.ones_like(out))


def _seconds(call: Callable[[], None], device: torch.device, times: int = 3) -> float:
    """The least time of several calls after one that builds tables and warms up."""
    taken = []
    for _ in range(times + 1):
        synchronize(device)
        begin = time.perf_counter()
        call()
        synchronize(device)
        taken.append(time.perf_counter() - begin)
    return min(taken[1:])
