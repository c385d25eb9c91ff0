# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""The grid of a volume, also from the header of its file alone, and whether two are one."""

from __future__ import annotations

from pathlib import Path

import nibabel
import numpy as np
from monai.data import MetaTensor

from bundle.data.formats import itk_affine, to_millimetres
from bundle.data.header_texts import read_text_header

__all__ = ["Grid", "file_grid", "same_place", "spacing_along_axes", "volume_grid"]

#: voxels per axis, and the affine to RAS mm
Grid = tuple[tuple[int, ...], np.ndarray]

#: two grids are one if their corners lie nearer than this, in voxels: writers round the affine differently
_SAME_PLACE = 0.1


def file_grid(file: Path) -> Grid | None:
    """The size and the affine of a NIfTI, NRRD or MetaImage file; None if the header cannot be read or is not 3D."""
    try:
        if file.name.lower().endswith((".nrrd", ".nhdr", ".mha", ".mhd")):
            return _itk_grid(str(file))
        image = nibabel.load(file)
        return tuple(image.shape[:3]), to_millimetres(image)[0]
    except Exception:  # noqa: BLE001 - readers raise anything on a broken file
        return None


def volume_grid(image: MetaTensor) -> Grid:
    """The size and the affine of a volume ``[channels, D, H, W]``."""
    return tuple(image.shape[1:]), np.asarray(image.affine, dtype=np.float64)


def same_place(one: Grid, other: Grid) -> bool:
    """Whether two grids have one size and the same place in space, to a tenth of a voxel at every corner."""
    (shape, affine), (other_shape, other_affine) = one, other
    if shape != other_shape:
        return False
    corners = np.array([[*((np.array(shape) - 1) * np.array(bits)), 1.0] for bits in np.ndindex(2, 2, 2)])
    apart = float(np.abs((affine - other_affine) @ corners.T).max())
    return apart <= _SAME_PLACE * float(np.linalg.norm(other_affine[:3, :3], axis=0).min())


def spacing_along_axes(affine: np.ndarray) -> np.ndarray:
    """The voxel size in mm along R, A, S, in whatever order the array has its axes."""
    order = np.argsort(nibabel.io_orientation(affine)[:, 0])
    sizes: np.ndarray = np.linalg.norm(affine[:3, :3], axis=0)[order]
    return sizes


def _itk_grid(file: str) -> Grid | None:
    import itk  # noqa: PLC0415 - large, and not needed for NIfTI

    header = itk.ImageIOFactory.CreateImageIO(file, itk.CommonEnums.IOFileMode_ReadMode)
    header.SetFileName(file)
    header.ReadImageInformation()
    if header.GetNumberOfDimensions() != 3:
        return None
    shape = tuple(int(header.GetDimensions(axis)) for axis in range(3))
    affine = itk_affine(header)
    affine[:3] *= read_text_header(file).millimetres(file)
    return shape, affine
