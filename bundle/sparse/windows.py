# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""Sliding windows, of convolution or pooling: what they read, and whether the map stays on its cells."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

from bundle.cells import Triple
from bundle.sparse.unsupported import UnsupportedOperation

__all__ = ["Window", "high_widths", "require_whole_cells"]


@dataclass(frozen=True)
class Window:
    """What a convolution reads: output ``o`` reads inputs ``o * stride - padding + k * dilation``, k below `kernel`.

    Attributes:
        kernel: places on each axis.
        stride: input sites from one output to the next.
        padding: zeros before the first site; after the last one come as many as ``sites / stride`` outputs read.
        dilation: input sites from one place of the kernel to the next.
    """

    kernel: Triple
    stride: Triple
    padding: Triple
    dilation: Triple

    @property
    def high(self) -> Triple:
        """Sites past the last one that the window reads."""
        return high_widths(self.kernel, self.stride, self.padding, self.dilation)

    @property
    def is_pointwise(self) -> bool:
        """Whether every output reads the input at its own site and nothing else."""
        return prod(self.kernel) == prod(self.stride) == 1 and not any(self.padding)

    @property
    def keeps_size(self) -> bool:
        """Whether the window is centred on its own site and goes from site to site."""
        reach = zip(self.padding, self.dilation, self.kernel)
        return prod(self.stride) == 1 and all(2 * p == d * (k - 1) for p, d, k in reach)


def high_widths(kernel: Triple, stride: Triple, low: Triple, dilation: Triple) -> Triple:
    """Sites past the last one that windows read, if `low` come before the first and ``sites / stride`` windows fit.

    Negative where the last window stops short of the last site.
    """
    a, b, c = (d * (k - 1) - p - s + 1 for k, s, p, d in zip(kernel, stride, low, dilation))
    return a, b, c


def require_whole_cells(
    sites: Sequence[int],
    kernel: Triple,
    stride: Triple,
    low: Triple,
    high: Triple,
    dilation: Triple,
    ceil_mode: bool = False,
) -> None:
    """Checks that a window leaves ``sites / stride`` sites on each axis, so that every site keeps its place on a cell.

    Args:
        sites: of the map on each axis.
        kernel: of the window.
        stride: of the window.
        low: padding before the first site.
        high: padding after the last site.
        dilation: of the window.
        ceil_mode: as torch's pooling has it: a last window may reach past the padding.

    Raises:
        UnsupportedOperation: if the map would lose its place.
    """
    for n, k, s, lo, hi, d in zip(sites, kernel, stride, low, high, dilation):
        room = n + lo + hi - d * (k - 1) - 1
        out = (-(-room // s) if ceil_mode else room // s) + 1
        if ceil_mode and (out - 1) * s >= n + lo:  # torch's: a window must start inside the map or its low padding
            out -= 1
        if out != n // s:
            raise UnsupportedOperation(
                f"a window with kernel {k}, stride {s}, padding {lo} and {hi}, dilation {d} moves the map off its "
                f"cells ({n} sites): pad as for an output of {n // s} sites"
            )
