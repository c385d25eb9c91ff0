# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""Boxes around real organs, from a label map, by nibabel and numpy alone."""

from __future__ import annotations

import itertools
from pathlib import Path

import nibabel as nib
import numpy as np

#: the label map of the CT covers the highest 30 of its 112 slices, but its header has the origin of the lowest one
_FIRST_SLICE = {"ct_body_totalseg": 82, "mr_body_totalseg": 0}


def labelled_part(data_dir: Path, name: str) -> tuple[nib.Nifti1Image, nib.Nifti1Image]:
    """The slices of a volume that have a label map, and that map, on one grid."""
    labels = np.asarray(nib.load(data_dir / "labels" / f"{name}.nii.gz").dataobj)
    first = _FIRST_SLICE[name]
    part = nib.load(data_dir / "volumes" / f"{name}.nii.gz").slicer[..., first : first + labels.shape[2]]
    return part, nib.Nifti1Image(labels, part.affine)


def organ_box(labels: nib.Nifti1Image, value: int) -> list[float]:
    """Centre and size in mm (RAS) of the voxels that have a value."""
    voxels = np.argwhere(np.asarray(labels.dataobj) == value)
    ends = voxels.min(0) - 0.5, voxels.max(0) + 0.5
    corners = [[ends[bit][axis] for axis, bit in enumerate(bits)] for bits in itertools.product((0, 1), repeat=3)]
    world = nib.affines.apply_affine(labels.affine, corners)
    low, high = world.min(0), world.max(0)
    return [*((low + high) / 2).tolist(), *(high - low).tolist()]
