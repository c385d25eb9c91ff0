# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""Reads the files that hold one volume each: NIfTI and FreeSurfer by nibabel, NRRD and MetaImage by ITK."""

from __future__ import annotations

from typing import Any

import nibabel
import numpy as np

from bundle.data.sanity import check_affine, check_shape, check_size
from bundle.errors import VolumeError

__all__ = ["read_by_itk", "read_by_nibabel"]

#: mm per unit of a NIfTI header; most writers leave "unknown" where they mean mm
_MILLIMETRES = {"meter": 1000.0, "micron": 0.001}
#: from an origin to a scanner's centre, in mm
_FARTHEST = 5000.0


def read_by_nibabel(file: str, name: str, stacked: bool) -> tuple[np.ndarray, np.ndarray, tuple[str, ...]]:
    """Reads a NIfTI or FreeSurfer file.

    Args:
        file: to read.
        name: what to call the volume in an error.
        stacked: whether the fourth axis holds channels; else it is refused.

    Returns:
        Float32 ``[channels, D, H, W]``, the affine from index to RAS mm, and notes on what was assumed.

    Raises:
        VolumeError: if it is not one 3D volume of plain numbers, or its size or voxel size cannot be true.
    """
    image = nibabel.load(file)
    _check_kind(image, name)
    shape = image.shape
    is_stack = stacked and len(shape) == 4 and shape[3] > 1
    check_shape(shape[:3] if is_stack else shape, name)
    affine, notes = _to_millimetres(image)
    check_affine(affine, shape[:3], name)
    check_size(shape, name)
    array = np.asanyarray(image.dataobj, dtype=np.float32)  # header's slope and intercept applied
    array = np.moveaxis(array, 3, 0) if is_stack else array.reshape(1, *shape[:3])
    return np.ascontiguousarray(array), affine, notes


def read_by_itk(file: str, name: str) -> tuple[np.ndarray, np.ndarray, tuple[str, ...]]:
    """Reads an NRRD or MetaImage file, or another one that ITK knows; returns and raises as `read_by_nibabel`."""
    import itk  # noqa: PLC0415 - large, and not needed for NIfTI
    from monai.data import ITKReader  # noqa: PLC0415

    kind = itk.ImageIOFactory.CreateImageIO(file, itk.CommonEnums.IOFileMode_ReadMode)
    if kind is None:
        itk.imread(file)  # says what is wrong
        raise ValueError("of no known format")
    kind.SetFileName(file)
    kind.ReadImageInformation()
    if kind.GetNumberOfComponents() > 1:
        raise VolumeError(name, "holds several values per voxel", "leave it out or split it")
    shape = tuple(int(kind.GetDimensions(axis)) for axis in range(kind.GetNumberOfDimensions()))
    check_shape(shape, name)
    check_size(shape, name)
    # to float in ITK: it has no images of int8 or of 64-bit integers in Python
    image = itk.imread(file, pixel_type=itk.F)
    array, meta = ITKReader().get_data(image)
    affine = np.asarray(meta["affine"], dtype=np.float64)
    check_affine(affine, array.shape[:3], name)
    return np.ascontiguousarray(array, dtype=np.float32).reshape(1, *shape[:3]), affine, ()


def _check_kind(image: Any, name: str) -> None:
    if not isinstance(image, nibabel.Nifti1Pair | nibabel.MGHImage):  # NIfTI-2 is a subclass
        raise VolumeError(
            name, "is an Analyze image, whose header does not tell left from right", "convert it to NIfTI"
        )
    kind = image.get_data_dtype()
    if kind.fields:
        raise VolumeError(name, "holds colours, not one value per voxel", "leave it out")
    if kind.kind == "c":
        raise VolumeError(name, "holds complex numbers", "save its magnitude, or leave it out")


def _to_millimetres(image: Any) -> tuple[np.ndarray, tuple[str, ...]]:
    affine = np.array(image.affine, dtype=np.float64)
    unit = image.header.get_xyzt_units()[0] if isinstance(image, nibabel.Nifti1Pair) else "mm"
    if unit not in _MILLIMETRES:
        return affine, ()
    origin = affine[:3, 3].copy()
    affine[:3] *= _MILLIMETRES[unit]
    scaled, voxel = np.abs(affine[:3, 3]), np.linalg.norm(affine[:3, :3], axis=0).min()
    if origin.any() and np.abs(origin).max() < _FARTHEST and (scaled.max() > _FARTHEST or scaled.max() < voxel):
        affine[:3, 3] = origin  # some writers convert the size of a voxel only
        return affine, (f"units are {unit}s; its origin is taken as mm, since it makes no sense in {unit}s",)
    return affine, ()
