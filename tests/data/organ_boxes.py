# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""Boxes around real organs, from a label map, by nibabel and numpy alone."""

from __future__ import annotations

import itertools
from pathlib import Path

import nibabel as nib
import numpy as np


def organ_box(label_map: Path, value: int) -> list[float]:
    """Centre and size in mm (RAS) of the voxels that have a value."""
    image = nib.load(label_map)
    voxels = np.argwhere(np.asarray(image.dataobj) == value)
    ends = voxels.min(0) - 0.5, voxels.max(0) + 0.5
    corners = np.array(
        [[ends[bit][axis] for axis, bit in enumerate(bits)] for bits in itertools.product((0, 1), repeat=3)]
    )
    world = nib.affines.apply_affine(image.affine, corners)
    low, high = world.min(0), world.max(0)
    return [*((low + high) / 2).tolist(), *(high - low).tolist()]
