# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""Padding: the stored values outside the scanner's field of view, as the header names them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import pydicom

__all__ = ["keep_padding", "padding_range"]


def padding_range(header: pydicom.Dataset) -> tuple[float, float] | None:
    """The range of stored values that are padding; some writers give a signed value as unsigned, and vice versa."""
    value, limit = header.get("PixelPaddingValue"), header.get("PixelPaddingRangeLimit")
    if value is None or isinstance(value, bytes):
        return None
    bits, is_signed = int(header.get("BitsAllocated", 16)), bool(header.get("PixelRepresentation", 0))
    ends = sorted(_wrapped(end, bits, is_signed) for end in (value, value if limit is None else limit))
    return float(ends[0]), float(ends[1])


def keep_padding(used: np.ndarray, raw: np.ndarray, header: pydicom.Dataset) -> np.ndarray:
    """Values without their unused bits, but padding as it is in the file.

    Some writers pad with a value that needs more bits than they say they use. Without these it looks like another one.

    Args:
        used: values without the unused bits.
        raw: the same values as they are in the file.
        header: of the file.
    """
    padding, stored = padding_range(header), int(header.BitsStored)
    if padding is None:
        return used
    lowest = -(2 ** (stored - 1)) if header.get("PixelRepresentation", 0) else 0
    if lowest <= padding[0] and padding[1] < lowest + 2**stored:
        return used
    kept: np.ndarray = np.where((raw >= padding[0]) & (raw <= padding[1]), raw, used)
    return kept


def _wrapped(value: int, bits: int, is_signed: bool) -> int:
    value = int(value) % 2**bits
    return value - 2**bits if is_signed and value >= 2 ** (bits - 1) else value
