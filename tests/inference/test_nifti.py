# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
from __future__ import annotations

import itertools
from pathlib import Path

import itk
import nibabel
import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from bundle.inference import write_nifti

SHAPE = (7, 5, 6)


def placed(axes: np.ndarray) -> np.ndarray:
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = axes * [0.7, 1.3, 4.1], [-311.3, 207.9, -1402.7]
    return affine


ORIENTATIONS = [
    placed(np.eye(3)[:, list(order)] * signs)
    for order in itertools.permutations(range(3))
    for signs in itertools.product([1, -1], repeat=3)
]
TILTED = [
    placed(Rotation.from_euler("xyz", angles, degrees=True).as_matrix()) for angles in ([179.9, 1, 0], [9, 20, 40])
]
SHEARED = [placed(np.array([[1, 0, 0], [0, 1, 0.4], [0, 0, 1]]))]


def write(path: Path, affine: np.ndarray) -> np.ndarray:
    voxels = np.random.default_rng(0).integers(0, 400, SHAPE)
    parts = (voxels[:, :, plane] for plane in range(SHAPE[2]))
    write_nifti(path, parts, affine=affine, shape=SHAPE, dtype=np.dtype(np.uint16))
    return voxels


@pytest.mark.parametrize("affine", [*ORIENTATIONS, *TILTED, *SHEARED])
def test_the_file_says_the_grid_exactly(affine: np.ndarray, tmp_path: Path):
    voxels = write(tmp_path / "a.nii.gz", affine)
    image = nibabel.load(tmp_path / "a.nii.gz")
    corners = np.array([[*((np.array(SHAPE) - 1) * bits), 1] for bits in np.ndindex(2, 2, 2)])
    forms = [image.get_sform(coded=True), image.get_qform(coded=True)]
    assert forms[0][1] == 1
    for form, code in forms:
        if code:
            assert np.abs((form - affine) @ corners.T).max() < 1.5e-4
    assert (np.asarray(image.dataobj) == voxels).all() and image.get_data_dtype() == np.uint16
    assert image.header.get_xyzt_units()[0] == "mm" and bytes(image.header["descrip"]).strip(b"\0") == b""


@pytest.mark.parametrize("affine", [*ORIENTATIONS[::7], *TILTED])
def test_itk_reads_the_same_grid(affine: np.ndarray, tmp_path: Path):
    voxels = write(tmp_path / "a.nii.gz", affine)
    image = itk.imread(tmp_path / "a.nii.gz")
    read = itk.array_from_matrix(image.GetDirection()) * np.array(image.GetSpacing())
    ras = np.diag([-1, -1, 1])
    assert np.abs(ras @ read - affine[:3, :3]).max() < 1e-5
    assert np.abs(ras @ np.array(image.GetOrigin()) - affine[:3, 3]).max() < 1.5e-4
    assert (itk.array_from_image(image).transpose() == voxels).all()


def test_channels_are_the_fourth_axis_and_parts_may_be_of_any_length(tmp_path: Path):
    voxels = np.random.default_rng(0).random((*SHAPE, 2)).astype(np.float32)
    parts = [voxels[:, :, part, channel] for channel in (0, 1) for part in (slice(0, 4), slice(4, 6))]
    write_nifti(tmp_path / "a.nii.gz", parts, affine=np.eye(4), shape=(*SHAPE, 2), dtype=np.dtype(np.float32))
    assert (np.asarray(nibabel.load(tmp_path / "a.nii.gz").dataobj) == voxels).all()
