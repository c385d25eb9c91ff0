# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""Sliding windows, of convolution or pooling: what they read, and whether the map stays on its cells."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Literal

import torch.nn.functional as F
from torch import Tensor

from bundle.cells import Triple, triple
from bundle.sparse.unsupported import UnsupportedOperation

__all__ = ["Window", "pool_windows", "require_whole_cells"]


@dataclass(frozen=True)
class Window:
    """What an output reads: output ``o`` reads inputs ``o * stride - padding + k * dilation``, k below `kernel`.

    Attributes:
        kernel: places on each axis.
        stride: input sites from one output to the next.
        padding: zeros before the first site; after the last one come as many as ``sites / stride`` outputs read.
        dilation: input sites from one place of the kernel to the next.
    """

    kernel: Triple
    stride: Triple = (1, 1, 1)
    padding: Triple = (0, 0, 0)
    dilation: Triple = (1, 1, 1)

    @property
    def high(self) -> Triple:
        """Sites past the last one that ``sites / stride`` outputs read.

        Negative where the last window stops short of the last site.
        """
        axes = zip(self.kernel, self.stride, self.padding, self.dilation)
        return triple(d * (k - 1) - p - s + 1 for k, s, p, d in axes)

    @property
    def is_pointwise(self) -> bool:
        """Whether every output reads the input at its own site and nothing else."""
        return prod(self.kernel) == prod(self.stride) == 1 and not any(self.padding)

    @property
    def keeps_size(self) -> bool:
        """Whether the window is centred on its own site and goes from site to site."""
        reach = zip(self.padding, self.dilation, self.kernel)
        return prod(self.stride) == 1 and all(2 * p == d * (k - 1) for p, d, k in reach)

    @property
    def is_side_by_side(self) -> bool:
        """Whether the windows share no site and leave none out, so that each lies inside a single cell."""
        return self.kernel == self.stride and self.dilation == (1, 1, 1) and not any(self.padding)

    def outputs(self, cell_shape: Triple) -> Triple:
        """Outputs per cell and axis, for cells of `cell_shape` input sites.

        Raises:
            UnsupportedOperation: if the stride does not divide the cell, so that the mask has no place to go.
        """
        if any(sites % step for sites, step in zip(cell_shape, self.stride)):
            raise UnsupportedOperation(
                f"a stride of {self.stride} does not divide a cell that is {cell_shape} sites here: the cell must be "
                "the encoder's total stride on each axis"
            )
        return triple(sites // step for sites, step in zip(cell_shape, self.stride))


def require_whole_cells(
    sites: Sequence[int], window: Window, padding_after: Triple | None = None, ceil_mode: bool = False
) -> None:
    """Checks that a window leaves ``sites / stride`` sites on each axis, so that every site keeps its place on a cell.

    Args:
        sites: of the map on each axis.
        window: with the layer's padding before the first site.
        padding_after: the layer's padding after the last site; None for as much as before the first.
        ceil_mode: as torch's pooling has it: a last window may reach past the padding.

    Raises:
        UnsupportedOperation: if the map would lose its place.
    """
    after = window.padding if padding_after is None else padding_after
    for n, k, s, lo, hi, d in zip(sites, window.kernel, window.stride, window.padding, after, window.dilation):
        room = n + lo + hi - d * (k - 1) - 1
        out = (-(-room // s) if ceil_mode else room // s) + 1
        if ceil_mode and (out - 1) * s >= n + lo:  # torch's: a window must start inside the map or its low padding
            out -= 1
        if out != n // s:
            raise UnsupportedOperation(
                f"a window with kernel {k}, stride {s}, padding {lo} and {hi}, dilation {d} moves the map off its "
                f"cells ({n} sites): pad as for an output of {n // s} sites"
            )


def pool_windows(kind: Literal["max", "sum", "mean"], x: Tensor, window: Window) -> Tensor:
    """Torch's pooling of maps or blocks ``[N, C, ...]`` that have all that their windows read."""
    if kind == "max":
        return F.max_pool3d(x, window.kernel, window.stride, 0, window.dilation)
    return F.avg_pool3d(x, window.kernel, window.stride, divisor_override=1 if kind == "sum" else None)
