# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""Voxels as small whole numbers, and back: exactly where that can be, else with an error that is known."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

__all__ = ["Coded", "Coding", "encode", "find_levels"]

#: values that an unsigned number of 16 bits can tell apart
_NUMBERS = 65536
#: voxels that are looked at first
_SAMPLE = 2**18


@dataclass(frozen=True)
class Coding:
    """How the numbers of a file become voxels.

    Attributes:
        kind: "same", the voxels themselves; "bits", one bit for each voxel of a mask; "levels", numbers of the values
            in a table; "steps", whole steps above a lowest value.
        dtype: of the voxels.
        low: the lowest value, for "steps".
        step: from one number to the next, for "steps".
    """

    kind: str
    dtype: str
    low: float = 0.0
    step: float = 0.0

    @property
    def error(self) -> float:
        """How far a voxel that is read may lie from the one that was written, but for the rounding of float32."""
        return self.step / 2

    def decode(self, numbers: np.ndarray) -> np.ndarray:
        """The voxels of numbers of any shape, except for "levels": those are the values of the table at the numbers."""
        if self.kind == "steps":
            voxels = numbers.astype(np.float32)
            voxels *= np.float32(self.step)
            voxels += np.float32(self.low)
            return voxels
        return numbers.view(np.uint8) if self.kind == "bits" else numbers


@dataclass(frozen=True)
class Coded:
    """Voxels that are coded: see `Coding`."""

    coding: Coding
    numbers: np.ndarray
    table: np.ndarray | None = None


def encode(voxels: np.ndarray, *, exact: bool) -> Coded:
    """Codes the voxels of one channel.

    A mask becomes bits. An image with at most 65,536 different values, such as a CT on the grid that it was scanned on,
    becomes numbers of its values, and loses nothing. Another one stays as it is if it must be `exact`; else it is
    rounded to 65,535 equal steps between its lowest and its highest value.

    Args:
        voxels: of any shape.
        exact: whether nothing may be lost.
    """
    same = Coded(Coding("same", str(voxels.dtype)), voxels)
    if voxels.dtype == np.uint8:
        return Coded(Coding("bits", "uint8"), voxels) if voxels.size and voxels.max() <= 1 else same
    if voxels.dtype != np.float32 or not voxels.size:
        return same
    if (found := find_levels(voxels)) is not None:
        numbers, table = found
        return Coded(Coding("levels", "float32"), numbers, table)
    low, high = float(voxels.min()), float(voxels.max())
    if exact or not np.isfinite(high - low):
        return same
    step = (high - low) / (_NUMBERS - 1)
    numbers = np.empty(voxels.shape, np.uint16)
    for plane, whole in zip(voxels, numbers):  # plane by plane: a volume in float64 would not fit beside it
        whole[...] = np.clip(np.rint((plane - np.float64(low)) / step), 0, _NUMBERS - 1)
    return Coded(Coding("steps", "float32", low, step), numbers)


def find_levels(voxels: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
    """Numbers the different values of float32 voxels; None if there are more than 65,536.

    Returns:
        The number of each voxel, and the table of values: ``table[numbers]`` are the voxels.

    Example:
        >>> import numpy
        >>> hounsfield = numpy.array([-1000, -1000, 40, 41], dtype=numpy.float32)
        >>> numbers, table = find_levels(hounsfield / 1000)
        >>> bool((table[numbers] == hounsfield / 1000).all()), numbers.dtype
        (True, dtype('uint16'))
    """
    flat = voxels.reshape(-1)
    sample = np.unique(flat[:: max(1, flat.size // _SAMPLE)])
    if len(sample) > _NUMBERS or not np.isfinite(sample).all():
        return None
    if (levels := _even_levels(voxels, sample)) is not None:
        return levels
    table = np.unique(flat)
    if len(table) > _NUMBERS or not np.isfinite(table).all():
        return None
    return np.searchsorted(table, voxels).astype(np.uint16), table


def _even_levels(voxels: np.ndarray, sample: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
    """The levels of values that are equally spaced, as whole numbers are; the two where they are clipped need not be.

    It takes a tenth of the time that sorting all voxels does. None if it does not fit every voxel.
    """
    low, high = voxels.min(), voxels.max()
    inside = sample[(sample > low) & (sample < high)]
    if len(inside) < 2:
        return None
    base, step = inside[0], np.diff(inside).min()
    with np.errstate(all="ignore"):
        below, above = (low - base) / step, (high - base) / step
    if not max(-below, above) < _NUMBERS:  # infinite where two values differ by next to nothing, or a voxel is infinite
        return None
    first = int(np.floor(below)) - 1  # the number of the lowest value
    last = int(np.ceil(above)) + 1
    if last - first >= _NUMBERS:
        return None
    table, numbers = np.full(last - first + 1, low, np.float32), np.empty(voxels.shape, np.uint16)
    for plane, number in zip(voxels, numbers):
        number[...] = np.rint((plane - base) / step) - first
        number[plane == low] = 0
        number[plane == high] = last - first
        table[number] = plane
    if any(not np.array_equal(table[number], plane) for plane, number in zip(voxels, numbers)):
        return None
    return numbers, table
