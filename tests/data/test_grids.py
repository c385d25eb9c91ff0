# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""bundle/data/grids.py: grids from headers are those of the volumes when read."""

from __future__ import annotations

from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from bundle.data import read_volume
from bundle.data.grids import file_grid, is_same_grid, same_place, turn, turn_volume, volume_grid


@pytest.mark.parametrize("name", ["ct_spine_tptbox.nii.gz", "mr_brain_radiomics2.nrrd", "mr_breast_radiomics.nrrd"])
def test_a_header_gives_the_size_and_affine_of_the_whole_volume(data_dir: Path, name: str) -> None:
    volume = read_volume([str(data_dir / "volumes" / name)], name)
    grid = file_grid(data_dir / "volumes" / name)
    assert grid is not None and grid[0] == tuple(volume.shape[1:])
    np.testing.assert_allclose(grid[1], np.asarray(volume.affine), atol=1e-4)


def test_a_broken_file_has_no_grid(tmp_path: Path) -> None:
    for name in ("a.nii.gz", "a.nrrd", "a.mha"):
        (tmp_path / name).write_bytes(b"broken")
        assert file_grid(tmp_path / name) is None


def test_grids_are_one_to_a_tenth_of_a_voxel() -> None:
    affine = np.diag([2.0, 1.0, 3.0, 1.0])
    near, far = affine.copy(), affine.copy()
    near[0, 3], far[0, 3] = 0.09, 0.11
    assert same_place(((4, 5, 6), affine), ((4, 5, 6), near))
    assert not same_place(((4, 5, 6), affine), ((4, 5, 6), far))
    assert not same_place(((4, 5, 6), affine), ((4, 5, 7), affine))


#: oblique by 44 degrees, where rounding decides which of two axes a direction belongs to
OBLIQUE = np.array([[1.44, -2.08, 0, -9], [1.39, 2.16, 0, 4], [0, 0, 4, 30], [0, 0, 0, 1.0]])


@pytest.mark.parametrize("order", [(0, 1, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0)])
@pytest.mark.parametrize("signs", [(1, 1, 1), (1, -1, 1), (-1, 1, -1)])
def test_voxels_in_another_order_are_turned_back(order: tuple[int, ...], signs: tuple[int, ...]) -> None:
    values = np.random.default_rng(0).random((4, 5, 6), dtype=np.float32)
    change = np.stack([order, signs], axis=1)
    other = nibabel.orientations.apply_orientation(values, change)
    affine = OBLIQUE @ nibabel.orientations.inv_ornt_aff(change, values.shape)
    affine[:3, 3] += 0.01
    own, grid = ((4, 5, 6), OBLIQUE), (other.shape, affine)
    assert is_same_grid(grid, own) and is_same_grid(own, grid)
    turned, placed = turn(other, grid, own)
    np.testing.assert_array_equal(turned, values)
    assert same_place(placed, own)
    image = MetaTensor(torch.from_numpy(other.copy())[None], affine=torch.from_numpy(affine), meta={"notes": ("a",)})
    turned_volume = turn_volume(image, own)
    np.testing.assert_array_equal(turned_volume.numpy()[0], values)
    assert same_place(volume_grid(turned_volume), own) and turned_volume.meta["notes"] == ("a",)


def test_axes_that_no_order_brings_together_stay() -> None:
    values, like = np.zeros((4, 4, 4)), ((4, 4, 4), np.eye(4))
    tilted = np.eye(4)
    tilted[:3, :3] = [[0.5, -0.5, 2**-0.5], [0.5, -0.5, -(2**-0.5)], [2**-0.5, 2**-0.5, 0]]
    assert turn(values, ((4, 4, 4), tilted), like)[0] is values
