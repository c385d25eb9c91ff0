# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""bundle/data/grids.py: grids from headers are those of the volumes when read."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from bundle.data import read_volume
from bundle.data.grids import file_grid, same_place


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
