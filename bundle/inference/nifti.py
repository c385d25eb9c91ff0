# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""Writes NIfTI files whose header says the grid and nothing else, a part at a time."""

from __future__ import annotations

import gzip
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np

from bundle.atomic import replace_file

__all__ = ["write_nifti"]

#: mm that a corner may be off where the affine is written as a quaternion
_EXACT = 1e-4


def write_nifti(
    path: Path, parts: Iterable[np.ndarray], *, affine: np.ndarray, shape: tuple[int, ...], dtype: np.dtype[Any]
) -> None:
    """Writes a compressed file, which appears whole or not at all.

    Args:
        path: ends in .nii.gz.
        parts: the voxels in the order of the file: the first axis changes fastest.
        affine: ``[4, 4]``, from index to RAS mm.
        shape: voxels per axis; a fourth axis holds channels.
        dtype: of the voxels.
    """
    header = nibabel.Nifti1Header()
    header.set_data_dtype(dtype)
    header.set_data_shape(shape)
    header.set_xyzt_units("mm")
    header.set_sform(affine, code=1)
    _set_qform(header, affine, shape)
    header.set_slope_inter(1, 0)
    header["magic"], header["vox_offset"] = b"n+1", 352
    with (
        replace_file(path) as temporary,
        temporary.open("wb") as raw,
        gzip.GzipFile(filename="", mode="wb", compresslevel=1, fileobj=raw, mtime=0) as file,
    ):
        file.write(header.binaryblock + bytes(4))
        for part in parts:
            file.write(np.asarray(part, dtype=header.get_data_dtype()).tobytes(order="F"))


def _set_qform(header: Any, affine: np.ndarray, shape: tuple[int, ...]) -> None:
    """Says the grid in the second form, too, if that can hold it: no shear, and no loss in its quaternion."""
    header.set_qform(affine, code=1, strip_shears=True)
    corners = np.array([[*((np.array(shape[:3]) - 1) * bits), 1] for bits in np.ndindex(2, 2, 2)], dtype=np.float64)
    if np.abs((header.get_qform() - affine) @ corners.T).max() > _EXACT:
        header["qform_code"] = 0
