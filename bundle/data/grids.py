# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""The grid of a volume, also from the header of its file alone, and whether two are one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import torch
from monai.data import MetaTensor

from bundle.data.formats import itk_affine, to_millimetres
from bundle.data.header_texts import read_text_header

__all__ = [
    "Grid",
    "file_grid",
    "is_same_grid",
    "same_place",
    "spacing_along_axes",
    "turn",
    "turn_volume",
    "volume_grid",
]

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


def is_same_grid(one: Grid, other: Grid) -> bool:
    """Whether two grids have the same voxels, in whatever order they are stored."""
    nothing = np.broadcast_to(np.uint8(0), one[0])  # takes no memory
    return same_place(turn(nothing, one, other)[1], other)


def turn(values: np.ndarray, grid: Grid, like: Grid) -> tuple[np.ndarray, Grid]:
    """The same voxels with the axes in the order and the directions of another grid, as near as they can be.

    A DICOM series and the NIfTI file that a converter made of it differ so. Nothing is interpolated.

    Args:
        values: ``[D, H, W, ...]``.
        grid: of the values.
        like: the other grid; of any size and voxel size.

    Returns:
        A view of the values, and its grid; the same ones where no order of the axes fits.
    """
    axes, wanted = (affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0) for _, affine in (grid, like))
    alike = np.rint(np.linalg.solve(wanted, axes))  # [axis there, axis here]
    if not np.array_equal(np.abs(alike) @ np.ones((3, 2)), np.ones((3, 2))) or np.array_equal(alike, np.eye(3)):
        return values, grid
    there = np.abs(alike).argmax(0)
    change: Any = np.stack([there, alike[there, range(3)]], axis=1)
    turned: np.ndarray = nibabel.orientations.apply_orientation(values, change)
    affine = grid[1] @ nibabel.orientations.inv_ornt_aff(change, grid[0])
    return turned, (turned.shape[:3], affine)


def turn_volume(image: MetaTensor, like: Grid) -> MetaTensor:
    """As `turn`, of a volume ``[channels, D, H, W]`` with its `meta`."""
    grid = volume_grid(image)
    values, (_, affine) = turn(np.moveaxis(image.numpy(), 0, -1), grid, like)
    if affine is grid[1]:
        return image
    turned = torch.from_numpy(np.ascontiguousarray(np.moveaxis(values, -1, 0)))
    meta = {key: value for key, value in image.meta.items() if key not in ("affine", "original_affine")}
    return MetaTensor(turned, affine=torch.from_numpy(affine), meta=meta)


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
