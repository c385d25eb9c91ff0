# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""Refuses a header that cannot be true, before memory is asked for."""

from __future__ import annotations

import os
from collections.abc import Sequence
from math import prod

import numpy as np

from bundle.errors import VolumeError

__all__ = ["check_affine", "check_shape", "check_size"]

#: of a voxel, in mm
_SMALLEST, _LARGEST = 1e-3, 100.0
#: of a volume, in mm: no scanner's table is longer
_LONGEST = 5_000.0


def check_affine(affine: np.ndarray, shape: Sequence[int], name: str) -> None:
    """Raises a `VolumeError` if the affine is none, or if a voxel or the volume is too large or small for a patient."""
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    if not np.isfinite(affine).all() or (spacing < 1e-6).any() or abs(np.linalg.det(affine[:3, :3] / spacing)) < 1e-6:
        raise VolumeError(name, "has no valid affine (a voxel size of zero, say)", "correct its header or leave it out")
    size = " x ".join(f"{value:.3g}" for value in spacing)
    if (spacing < _SMALLEST).any() or (spacing > _LARGEST).any():
        raise VolumeError(
            name, f"has voxels of {size} mm, which cannot be true", "correct the units or voxel size in its header"
        )
    if (spacing * np.array(shape[-3:]) > _LONGEST).any():
        longest = float((spacing * np.array(shape[-3:])).max()) / 1000
        raise VolumeError(
            name, f"is {longest:.3g} m long, with voxels of {size} mm", "correct the units or voxel size in its header"
        )


def check_shape(shape: Sequence[int], name: str) -> None:
    """Raises a `VolumeError` for what is not one 3D volume."""
    text = " x ".join(map(str, shape))
    real = [size for size in shape if size > 1]
    if any(size < 1 for size in shape):
        raise VolumeError(name, f"is empty ({text})", "leave it out")
    if len(real) < 3:
        raise VolumeError(name, f"is a 2D image ({text})", "leave it out: volumes are needed")
    if len(real) == 3 and len(shape) > 3 and shape[0] == 1:
        raise VolumeError(
            name,
            f"has a first axis of 1 ({text}), so that its affine belongs to other axes",
            "save it without this axis",
        )
    if len(real) > 3 or any(size > 1 for size in shape[3:]):
        raise VolumeError(name, f"is a {len(shape)}D series ({text})", "split it into 3D volumes")


def check_size(shape: Sequence[int], name: str) -> None:
    """Raises a `VolumeError` if a float32 volume of this shape does not fit in the machine's memory."""
    needed, memory = 4 * prod(int(size) for size in shape), _memory()
    if needed > memory:
        text = " x ".join(map(str, shape))
        raise VolumeError(
            name,
            f"would take {needed / 2**30:.3g} GiB ({text} voxels), more than the {memory / 2**30:.3g} GiB of memory",
            "correct its header, or use a machine with more memory",
        )


def _memory() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
