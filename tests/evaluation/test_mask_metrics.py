# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""bundle/evaluation/mask_metrics.py: formulas, another library's values, edge cases."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from monai.metrics import compute_dice, compute_hausdorff_distance, compute_surface_dice
from scipy import ndimage
from scipy.spatial.distance import cdist

from bundle.evaluation.mask_metrics import mask_metrics, union_box, volume_metrics

SPACING = (0.8, 0.8, 2.5)
AFFINE = np.diag([*SPACING, 1.0])


def ellipsoid(shape: tuple[int, ...], radii: tuple[float, ...], centre: tuple[float, ...]) -> np.ndarray:
    index = np.meshgrid(*map(np.arange, shape), indexing="ij")
    mask: np.ndarray = sum(((i - c) / r) ** 2 for i, c, r in zip(index, centre, radii)) <= 1
    return mask


def pair() -> tuple[np.ndarray, np.ndarray]:
    one = ellipsoid((60, 50, 20), (20, 16, 6), (30, 25, 10))
    other = ellipsoid((60, 50, 20), (19, 15.2, 5.7), (31.3, 26.3, 11.3))
    return one, other


def test_dice_is_its_formula_and_distances_are_those_of_every_pair_of_edge_voxels() -> None:
    one, other = (mask[::2, ::2] for mask in pair())
    found = mask_metrics(one, other, AFFINE, tolerance_mm=2)
    assert found["dice"] == pytest.approx(2 * (one & other).sum() / (one.sum() + other.sum()), abs=1e-6)
    edges = [np.argwhere(mask & ~ndimage.binary_erosion(mask)) * SPACING for mask in (one, other)]
    apart = cdist(*edges)
    expected = max(np.percentile(apart.min(1), 95), np.percentile(apart.min(0), 95))
    assert found["hausdorff95_mm"] == pytest.approx(expected, rel=1e-5)


def test_the_surface_dice_is_that_of_deepminds_package() -> None:
    # surface-distance 0.1: compute_surface_dice_at_tolerance(compute_surface_distances(other, one, SPACING), 2.0)
    assert mask_metrics(*pair(), AFFINE, tolerance_mm=2.0)["surface_dice"] == pytest.approx(0.6686811069, abs=1e-6)


@pytest.mark.parametrize(
    "place", [(0, 0, 0), (40, 30, 25), (20, 11, 13)], ids=["first corner", "last corner", "inside"]
)
def test_masks_that_are_cut_to_their_box_have_the_metrics_of_the_whole_volume(place: tuple[int, ...]) -> None:
    whole = np.zeros((2, 60, 55, 38), dtype=bool)
    inner = tuple(slice(start, start + size) for start, size in zip(place, (20, 25, 13)))
    for mask, part in zip(whole, pair()):
        mask[inner] = part[20:40, 12:37, 4:17]
    box = union_box(*(ndimage.find_objects(mask.astype(int))[0] for mask in whole))
    found = mask_metrics(whole[0][box], whole[1][box], AFFINE, tolerance_mm=1.5)
    one, other = (torch.from_numpy(mask)[None, None] for mask in whole)
    options = {"include_background": True, "spacing": SPACING}
    assert found["dice"] == pytest.approx(float(compute_dice(one, other)), abs=1e-7)
    assert found["hausdorff95_mm"] == float(compute_hausdorff_distance(one, other, percentile=95, **options))
    surface = compute_surface_dice(one, other, [1.5], use_subvoxels=True, **options)
    assert found["surface_dice"] == pytest.approx(float(surface), abs=1e-6)


def test_a_mask_equal_to_the_reference_is_perfect() -> None:
    one, _ = pair()
    assert mask_metrics(one, one, AFFINE, tolerance_mm=0) == {"dice": 1, "hausdorff95_mm": 0, "surface_dice": 1}


def test_empty_masks_have_no_metrics_and_one_empty_mask_the_worst(recwarn: pytest.WarningsRecorder) -> None:
    empty, full = np.zeros((4, 4, 4), dtype=bool), np.ones((4, 4, 4), dtype=bool)
    assert all(math.isnan(value) for value in mask_metrics(empty, empty, AFFINE, tolerance_mm=1).values())
    worst = {"dice": 0, "hausdorff95_mm": math.inf, "surface_dice": 0}
    assert mask_metrics(empty, full, AFFINE, tolerance_mm=1) == worst
    assert mask_metrics(full, empty, AFFINE, tolerance_mm=1) == worst
    assert not [warning for warning in recwarn if "all 0" in str(warning.message)]


def test_distances_do_not_depend_on_the_order_of_the_axes() -> None:
    one, other = pair()
    expected = mask_metrics(one, other, AFFINE, tolerance_mm=2)
    turned = np.diag([-2.5, 0.8, -0.8, 1.0])
    found = mask_metrics(*(mask.transpose(2, 0, 1)[::-1] for mask in (one, other)), turned, tolerance_mm=2)
    assert found == pytest.approx(expected, abs=1e-6)


def test_distances_on_tilted_slices_are_those_in_the_patient() -> None:
    tilted = AFFINE.copy()
    tilted[1, 2] = 1.6  # each slice lies two voxels further along the second axis
    one = ellipsoid((40, 44, 12), (9, 9, 3), (20, 22, 6))
    straight, moved = np.zeros((2, 40, 70, 12), dtype=bool)
    for number in range(12):
        straight[:, 2 * number + 1 : 2 * number + 45, number] = one[..., number]
        moved[:, 2 * number + 3 : 2 * number + 47, number] = one[..., number]
    expected = mask_metrics(straight, moved, AFFINE, tolerance_mm=1)
    found = mask_metrics(one, np.roll(one, 2, 1), tilted, tolerance_mm=1)
    assert found == pytest.approx(expected, abs=1e-5)


def test_volumes_are_in_ml_and_percent_of_the_reference() -> None:
    found = volume_metrics(90, 100, np.diag([-2.0, 2.0, 2.5, 1]))
    expected = {"volume_ml": 0.9, "reference_ml": 1.0, "volume_error_ml": -0.1, "volume_error_percent": -10}
    assert found == pytest.approx(expected)
    assert math.isnan(volume_metrics(5, 0, AFFINE)["volume_error_percent"])


def test_a_box_around_nothing_is_empty() -> None:
    assert union_box(None, None) == (slice(0, 0),) * 3
    assert union_box(None, (slice(1, 2),) * 3, (slice(0, 1), slice(3, 4), slice(1, 2))) == (
        slice(0, 2), slice(1, 4), slice(1, 2),
    )  # fmt: skip
