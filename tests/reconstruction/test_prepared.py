# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""What is reconstructed perfectly must be the original again, on its own grid and in its own units."""

from __future__ import annotations

from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import SpatialResample

from bundle.data import FoundVolume
from bundle.reconstruction import prepare_volume
from bundle.reconstruction.reconstruct import _write
from tests.data.volumes import preparation

from .examples import CELL, CROP, flipped_affine, oblique_affine, prepared, smooth_body


def tilted_affine() -> np.ndarray:
    """Each slice lies one and a half voxels further along the second axis."""
    affine = flipped_affine()
    affine[:3, 2] += 1.5 * affine[:3, 1]
    return affine


AFFINES = {"flipped": flipped_affine, "oblique": oblique_affine}
SIZE = (40, 36, 44)


def back(volume) -> np.ndarray:
    return volume.on_own_grid(volume.in_units(volume.image.as_tensor()))[0].numpy()


def inside(volume) -> np.ndarray:
    """Voxels of the original, but for its border, that the prepared volume covers with a voxel to spare."""
    core = torch.zeros_like(volume.valid)
    core[:, 1:-1, 1:-1, 1:-1] = volume.valid[:, 1:-1, 1:-1, 1:-1]
    covered = volume.on_own_grid(core, nearest=True)[0].numpy() > 0
    within = np.zeros_like(covered)
    within[1:-1, 1:-1, 1:-1] = True
    return covered & within


@pytest.mark.parametrize("spacing", [None, [2, 2, 2]])
@pytest.mark.parametrize("affine", AFFINES.values(), ids=AFFINES.keys())
def test_the_prepared_volume_comes_back_to_the_original(tmp_path: Path, affine, spacing):
    array = smooth_body(SIZE, affine())
    volume = prepared(tmp_path, array, affine(), spacing=spacing)
    where = inside(volume)
    assert where.mean() > 0.4
    error = np.abs(back(volume) - array)[where]
    # a shift by one voxel would be seen: that changes the body by 40 HU
    step = np.abs(np.diff(array, axis=1)).max()
    assert step > 40 and error.max() < (0.01 if spacing is None else 9)


def test_the_units_of_an_mr_volume_come_back(tmp_path: Path):
    array = (smooth_body(SIZE, flipped_affine()) + 1000) * 3
    volume = prepared(tmp_path, array, flipped_affine(), is_a="MR", mr_percentiles=[0.001, 99.999])
    where = inside(volume) & (volume.original[0].numpy() > 500)
    assert np.abs(back(volume) - array)[where].max() < 0.05


def test_a_real_volume_comes_back_but_for_the_clipping(data_dir: Path):
    file = data_dir / "volumes/ct_body_totalseg.nii.gz"
    volume = prepare_volume(FoundVolume("ct", (str(file),)), preparation(CROP, cell=CELL))
    original = np.clip(np.asarray(nibabel.load(file).dataobj, dtype=np.float32), -1000, 1000)
    where = inside(volume)
    assert np.abs(back(volume) - original)[where].max() < 0.1


@pytest.mark.parametrize("affine", AFFINES.values(), ids=AFFINES.keys())
def test_the_file_has_the_grid_of_the_original_and_no_text(tmp_path: Path, affine):
    array = smooth_body(SIZE, affine())
    volume = prepared(tmp_path, array, affine())
    _write(volume.original.as_tensor(), volume.grid, tmp_path / "out.nii.gz")
    written = nibabel.load(tmp_path / "out.nii.gz")
    np.testing.assert_array_equal(np.asarray(written.dataobj), array)
    np.testing.assert_allclose(written.affine, affine(), atol=1e-5)
    np.testing.assert_allclose(written.get_qform(), affine(), atol=1e-4)
    assert not bytes(written.header["descrip"]).strip(b"\0") and written.header.get_xyzt_units()[0] == "mm"


@pytest.mark.parametrize("affine", [*AFFINES.values(), tilted_affine], ids=[*AFFINES, "tilted"])
@pytest.mark.parametrize("spacing", [None, [2, 2, 2]])
def test_values_and_masks_come_back_as_monai_resamples_them(tmp_path: Path, affine, spacing):
    array = smooth_body(SIZE, affine())
    volume = prepared(tmp_path, array, affine(), spacing=spacing)
    to_index = np.linalg.inv(np.asarray(volume.image.affine)) @ affine()
    places = np.tensordot(to_index[:3, :3], np.indices(SIZE), 1) + to_index[:3, 3:, None, None]
    half_way = torch.from_numpy(np.abs(places - np.floor(places) - 0.5).min(0) < 2e-3)  # rounded either way
    for values, nearest in ((volume.image.as_tensor(), False), (volume.foreground.float(), True)):
        resample = SpatialResample(mode="nearest" if nearest else "bilinear", padding_mode="zeros", dtype=torch.float64)
        source = MetaTensor(values, affine=volume.image.affine)
        whole = resample(source, dst_affine=torch.from_numpy(affine()), spatial_size=SIZE).as_tensor()
        covered = resample(torch.ones_like(source), dst_affine=torch.from_numpy(affine()), spatial_size=SIZE) == 1
        compared = covered.as_tensor() & ~half_way if nearest else covered.as_tensor()
        assert compared.double().mean() > 0.2
        assert (volume.on_own_grid(values, nearest=nearest) - whole).abs()[compared].max() < 1e-4


def test_a_tilted_volume_is_kept_as_its_file_has_it(tmp_path: Path):
    affine = tilted_affine()
    array = smooth_body(SIZE, affine)
    volume = prepared(tmp_path, array, affine)
    np.testing.assert_array_equal(volume.original[0].numpy(), array)
    np.testing.assert_allclose(volume.grid.affine, affine)
    where = inside(volume)
    # straightened and tilted again, so interpolated twice
    assert where.mean() > 0.3 and np.abs(back(volume) - array)[where].max() < 5
