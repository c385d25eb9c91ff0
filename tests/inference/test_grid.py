# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import ndimage
from scipy.spatial.transform import Rotation

from bundle.inference import OwnGrid
from bundle.inference import grid as module

GENERATOR = np.random.default_rng(0)


def affine(axes: np.ndarray, spacing: tuple[float, ...], origin: tuple[float, ...]) -> torch.Tensor:
    matrix = np.eye(4)
    matrix[:3, :3], matrix[:3, 3] = axes * np.array(spacing), origin
    return torch.from_numpy(matrix)


TILTED = Rotation.from_euler("xyz", [20, -35, 50], degrees=True).as_matrix()
SHEAR = np.array([[1, 0, 0], [0, 1, 0.4], [0, 0, 1]])
PREPARED = affine(np.eye(3), (1.5, 1.5, 1.5), (-20.0, -15.0, 5.0))  # of 24 x 20 x 22 voxels
GRIDS = {
    "finer": (affine(np.eye(3), (0.7, 0.9, 3.0), (-22.0, -14.0, 2.0)), (50, 31, 13)),
    "flipped": (affine(np.diag([-1, -1, 1]), (1.1, 0.8, 2.0), (17.0, 16.0, 6.0)), (33, 40, 15)),
    "turned": (affine(np.eye(3)[[1, 2, 0]], (1.0, 2.1, 1.3), (-19.0, -17.0, 4.0)), (30, 14, 27)),
    "tilted": (affine(TILTED, (0.9, 0.9, 2.5), (-18.0, -20.0, 10.0)), (40, 36, 12)),
    "sheared": (affine(SHEAR, (1.0, 1.0, 2.0), (-20.0, -16.0, 5.0)), (34, 30, 16)),
    "far away": (affine(np.eye(3), (1.0, 1.0, 1.0), (500.0, 0.0, 0.0)), (6, 5, 4)),
    "the same": (PREPARED.clone(), (24, 20, 22)),
}


def expected(values: np.ndarray, grid: OwnGrid, outside: list[float]) -> np.ndarray:
    """SciPy's linear interpolation of the whole grid at once."""
    index = np.stack([*np.indices(grid.shape).astype(float), np.ones(grid.shape)])
    places = np.einsum("ij,jxyz->ixyz", np.linalg.inv(PREPARED.numpy()) @ grid.affine.numpy(), index)[:3]
    size = np.array(values.shape[1:])[:, None, None, None]
    inside = ((places > -0.501) & (places < size - 0.499)).all(0)
    channels = [ndimage.map_coordinates(c.astype(float), places, order=1, mode="nearest") for c in values]
    return np.where(inside, channels, np.array(outside)[:, None, None, None])


@pytest.mark.parametrize("name", GRIDS)
@pytest.mark.parametrize("planes", [1, 1000])
def test_slabs_together_are_the_interpolation_of_the_whole_grid(name: str, planes: int, monkeypatch):
    grid = OwnGrid(*GRIDS[name])
    logits = GENERATOR.normal(size=(3, 24, 20, 22)).astype(np.float32)
    values = torch.from_numpy(logits).softmax(0)
    monkeypatch.setattr(module, "_SLAB_BYTES", planes * 8 * 3 * grid.shape[0] * grid.shape[1])
    slabs = list(grid.slabs(values, PREPARED, outside=[1.0, 0.0, 0.0]))
    assert len(slabs) == -(-grid.shape[2] // planes)
    found = torch.cat([slab for _, slab in slabs], 3).numpy()
    assert [plane for part, _ in slabs for plane in range(part.start, part.stop)] == list(range(grid.shape[2]))
    oracle = expected(values.numpy(), grid, [1.0, 0.0, 0.0])
    assert np.abs(found - oracle).max() < 1e-6
    assert (found.argmax(0) == oracle.argmax(0)).all()
    if name == "the same":
        assert np.abs(found - values.numpy()).max() < 1e-6
    assert (found[0] == 1).all() == (name == "far away")


def test_the_nearest_value_is_taken_whole():
    values = torch.tensor([1.0, 2.0, 4.0]).view(1, 3, 1, 1)
    grid = OwnGrid(affine(np.eye(3), (0.4, 1, 1), (-0.8, 0, 0)), (9, 1, 1))
    ((_, slab),) = grid.slabs(values, torch.eye(4, dtype=torch.float64), nearest=True)
    assert slab.flatten().tolist() == [0, 1, 1, 1, 2, 2, 4, 4, 4]


@pytest.mark.parametrize("planes", [1, 2, 3, 1000])
def test_half_way_the_nearest_value_is_that_of_the_lower_index_however_the_grid_is_cut(planes: int, monkeypatch):
    monkeypatch.setattr(module, "_SLAB_BYTES", planes * 8)
    values = torch.arange(1.0, 8).view(1, 1, 1, 7)
    grid = OwnGrid(affine(np.eye(3), (1, 1, 0.5), (0, 0, 0)), (1, 1, 13))
    slabs = grid.slabs(values, torch.eye(4, dtype=torch.float64), nearest=True)
    assert torch.cat([slab for _, slab in slabs], 3).flatten().tolist() == [1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6, 7]


def test_a_voxel_beyond_the_last_centre_has_the_value_at_the_border():
    values = torch.tensor([1.0, 2.0, 4.0]).view(1, 3, 1, 1)
    grid = OwnGrid(affine(np.eye(3), (0.25, 1, 1), (-0.75, 0, 0)), (16, 1, 1))
    ((_, slab),) = grid.slabs(values, torch.eye(4, dtype=torch.float64), outside=[-1.0])
    wanted = [-1, 1, 1, 1, 1.25, 1.5, 1.75, 2, 2.5, 3, 3.5, 4, 4, 4, -1, -1]
    assert slab.flatten().tolist() == wanted
