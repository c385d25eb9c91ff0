# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""bundle/data/straighten.py: sheared grids, against linear fields, which linear interpolation keeps."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from bundle.data.straighten import is_sheared, straighten

SIZE = (9, 8, 7)
AFFINE = np.array([[-1.5, 0, 0.4, 20], [0, -1.2, 0.9, 30], [0.0, 0, 2.5, -5], [0, 0, 0, 1]])


def places(shape: tuple[int, ...], affine: np.ndarray) -> np.ndarray:
    index = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), axis=-1)
    return index @ affine[:3, :3].T + affine[:3, 3]


def field(ras: np.ndarray) -> np.ndarray:
    return 500 + ras @ np.array([3.0, -2.0, 4.0])


@pytest.mark.parametrize("turn", [0.0, 0.5])
def test_values_stay_at_their_places_and_the_whole_volume_is_kept(turn: float) -> None:
    rotation = np.eye(4)
    rotation[:2, :2] = [[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]]
    affine = rotation @ AFFINE
    image = MetaTensor(torch.from_numpy(field(places(SIZE, affine))[None]), affine=torch.from_numpy(affine))
    straight = straighten(image)
    made = straight.affine.numpy()
    assert is_sheared(affine) and not is_sheared(made)
    np.testing.assert_allclose(made[:3, :2], affine[:3, :2])  # the slices themselves are not turned
    ras = places(tuple(straight.shape[1:]), made)
    at = (ras - affine[:3, 3]) @ np.linalg.inv(affine[:3, :3]).T
    inside = ((at > -1e-9) & (at < np.array(SIZE) - 1 + 1e-9)).all(-1)
    np.testing.assert_allclose(straight[0].numpy()[inside], field(ras)[inside], atol=1e-6)
    np.testing.assert_allclose(straight.min(), image.min())
    corners = places((2, 2, 2), affine @ np.diag([*(np.array(SIZE) - 1), 1])).reshape(-1, 3)
    on_grid = (corners - made[:3, 3]) @ np.linalg.inv(made[:3, :3]).T
    assert (on_grid > -1e-6).all() and (on_grid < np.array(straight.shape[1:]) - 1 + 1e-6).all()


def test_label_values_are_not_mixed() -> None:
    labels = torch.from_numpy(np.random.default_rng(0).choice([0, 3, 7], (1, *SIZE)).astype(np.float32))
    straight = straighten(MetaTensor(labels, affine=torch.from_numpy(AFFINE)), nearest=True)
    assert set(straight.unique().tolist()) == {0, 3, 7}
    image = straighten(MetaTensor(torch.rand(1, *SIZE), affine=torch.from_numpy(AFFINE)))
    assert image.shape == straight.shape
    np.testing.assert_array_equal(image.affine.numpy(), straight.affine.numpy())


@pytest.mark.parametrize("shear", [0, 5e-4])
def test_volume_with_right_angles_is_not_touched(shear: float) -> None:
    affine = np.diag([1.0, 2, 3, 1])
    affine[1, 2] = 3 * shear
    image = MetaTensor(torch.rand(1, *SIZE), affine=torch.from_numpy(affine))
    assert straighten(image) is image
