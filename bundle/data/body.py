# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""Which voxels are body: a threshold, the largest connected part, and its holes.

ITK has filters for all of it, and they are the tests' oracle. It takes seconds to load them, in each process that
prepares volumes.
"""

from __future__ import annotations

import math
import sys

import numpy as np
from scipy import ndimage

__all__ = ["fill_axial_holes", "find_largest_part", "find_otsu_threshold"]

_BINS = 256
#: the bins reach a hundredth of a bin above the highest value
_MARGIN = 100
#: voxels that are put into the histogram at a time
_CHUNK = 2**20
#: neighbours within an axial slice, the third axis, that share an edge
_IN_PLANE = np.zeros((3, 3, 3), dtype=bool)
_IN_PLANE[:, 1, 1] = _IN_PLANE[1, :, 1] = True


def find_largest_part(mask: np.ndarray) -> np.ndarray:
    """The largest part of a mask whose voxels are connected by faces; of equally large ones, the first.

    Args:
        mask: bool ``[D, H, W]``, with at least one voxel.
    """
    parts, count = ndimage.label(mask)
    sizes = _count(parts.reshape(-1), count + 1)
    sizes[0] = 0
    return np.asarray(parts == sizes.argmax())


def fill_axial_holes(mask: np.ndarray) -> np.ndarray:
    """A mask with the holes of each axial slice: what is not connected with the slice's border by edges of voxels.

    Args:
        mask: bool ``[D, H, W]``; slices are along the last axis.
    """
    filled = mask.copy()
    if not mask.any():
        return filled
    # what lies more than a voxel outside of all slices of the body is no hole
    lines: list[np.ndarray] = [np.any(mask, axis=(1, 2)), np.any(mask, axis=(0, 2))]
    box = tuple(slice(max(0, low - 1), high + 2) for low, high in map(_ends, lines))
    inside = filled[box]
    parts, count = ndimage.label(~inside, _IN_PLANE)
    is_hole = np.ones(count + 1, dtype=bool)
    for border in (parts[0], parts[-1], parts[:, 0], parts[:, -1]):
        is_hole[border] = False
    is_hole[0] = False  # the mask itself
    inside |= is_hole[parts]
    return filled


def _ends(line: np.ndarray) -> tuple[int, int]:
    """The first and the last place that is true."""
    places = np.flatnonzero(line)
    return int(places[0]), int(places[-1])


def find_otsu_threshold(values: np.ndarray) -> float:
    """The value that divides a histogram of 256 bins into two classes with the largest variance between them.

    N. Otsu, "A threshold selection method from gray-level histograms", 1979. What ITK's filter gives, to the last bit.

    Args:
        values: float32, finite, of any shape.

    Returns:
        The upper end of the last bin of the lower class.
    """
    lowest, highest = float(values.min()), float(values.max())
    highest += (highest - lowest) / _BINS / _MARGIN
    width = (np.float32(highest) - np.float32(lowest)) / np.float32(_BINS)  # in float32, as ITK does it
    ends = lowest + (np.arange(_BINS + 1, dtype=np.float32) * width).astype(np.float64)
    ends[-1] = highest
    counts = _histogram(values, ends)
    return float(ends[_best_bin(counts, (ends[:-1] + ends[1:]) / 2) + 1])


def _histogram(values: np.ndarray, ends: np.ndarray) -> np.ndarray:
    flat, counts = values.reshape(-1), np.zeros(_BINS, dtype=np.int64)
    for start in range(0, flat.size, _CHUNK):  # sorted into bins in float64, which a whole volume need not be at once
        bins = np.searchsorted(ends[1:-1], flat[start : start + _CHUNK].astype(np.float64), side="right")
        counts += np.bincount(bins, minlength=_BINS)
    return counts


def _count(numbers: np.ndarray, count: int) -> np.ndarray:
    """How often each number below `count` occurs: as `bincount`, which would make a whole volume int64."""
    counts = np.zeros(count, dtype=np.int64)
    step = max(_CHUNK, count)  # of a noisy volume there are as many parts as voxels
    for start in range(0, numbers.size, step):
        counts += np.bincount(numbers[start : start + step], minlength=count)
    return counts


def _best_bin(counts: np.ndarray, middles: np.ndarray) -> int:
    """The last bin of the lower class.

    Bin after bin goes to the lower class, and its mean is corrected each time. Only rounding tells an empty bin from
    the next, so the order of the steps is that of ITK.
    """
    total, sizes, means = int(counts.sum()), counts.tolist(), middles.tolist()
    mean = 0.0
    for middle, size in zip(means, sizes):
        mean += middle * size
    mean /= total
    below, mean_below, best, best_bin = 0, 0.0, -math.inf, 0
    for number in range(_BINS - 1):
        size = below + sizes[number]
        if size:
            mean_below = (mean_below * below + means[number] * sizes[number]) / size if number else means[number]
        below, above = size, total - size
        mean_above = (mean * total - mean_below * below) / above if above else 0.0
        between = (below * (mean_below * mean_below) + above * (mean_above * mean_above)) / total
        if between > best and not _is_next(best, between):
            best, best_bin = between, number
    return best_bin


def _is_next(one: float, other: float) -> bool:
    """Whether two numbers differ by rounding only."""
    return other - one <= 0.1 * sys.float_info.epsilon or other <= math.nextafter(one, math.inf)
