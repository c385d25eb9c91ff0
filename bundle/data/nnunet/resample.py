# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""Resamples as nnU-Net's `resample_data_or_seg_to_shape` does: cubic, and thick slices each by itself."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import ndimage

__all__ = ["resample"]

#: voxels this many times longer than wide are resampled slice by slice
_THICK = 3.0


def resample(
    image: np.ndarray,
    spacing: Sequence[float],
    wanted: Sequence[float],
    *,
    order: int = 3,
    order_z: int = 0,
    force_separate_z: bool | None = None,
) -> np.ndarray:
    """Brings an image to another voxel size.

    Args:
        image: float32 ``[C, D, H, W]``.
        spacing: of it, mm per axis.
        wanted: mm per axis.
        order: of the splines.
        order_z: of the splines across thick slices.
        force_separate_z: whether slices are thick; None looks at both spacings.

    Returns:
        Float32 ``[C, D', H', W']``; the image itself where the size stays.
    """
    size = [round(mm / new * count) for mm, new, count in zip(spacing, wanted, image.shape[1:], strict=True)]
    if list(image.shape[1:]) == size:
        return image
    axis = _thick_axis(spacing, wanted, force_separate_z)
    return np.stack([_resized(channel.astype(np.float64), size, axis, order, order_z) for channel in image])


def _resized(image: np.ndarray, size: Sequence[int], axis: int | None, order: int, order_z: int) -> np.ndarray:
    if axis is None:
        return _splines(image, size, order).astype(np.float32)
    planes = np.moveaxis(image, axis, 0)
    flat = [count for i, count in enumerate(size) if i != axis]
    changed = np.stack([_splines(plane, flat, order) for plane in planes])
    if len(planes) != size[axis]:
        changed = _zoom(changed, [size[axis], *flat], order_z)
    return np.moveaxis(changed, 0, axis).astype(np.float32)


def _splines(image: np.ndarray, size: Sequence[int], order: int) -> np.ndarray:
    """As scikit-image's `resize`: what splines overshoot is clipped to the values that were there."""
    return np.clip(_zoom(image, size, order), image.min(), image.max())


def _zoom(image: np.ndarray, size: Sequence[int], order: int) -> np.ndarray:
    factors = [new / old for new, old in zip(size, image.shape, strict=True)]
    zoomed: np.ndarray = ndimage.zoom(image, factors, order=order, mode="nearest", grid_mode=True)
    return zoomed


def _thick_axis(spacing: Sequence[float], wanted: Sequence[float], force: bool | None) -> int | None:
    """The axis across thick slices, if there is one."""
    if force is False:
        return None
    for mm in (spacing, wanted):
        if force or max(mm) / min(mm) > _THICK:
            longest = [axis for axis in range(3) if mm[axis] == max(mm)]
            return longest[0] if len(longest) == 1 else None
    return None
