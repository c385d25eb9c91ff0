# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""bundle/data/body.py gives what ITK's filters give, to the last bit."""

from __future__ import annotations

from collections.abc import Callable

import itk
import numpy as np
import pytest

from bundle.data import find_scans, read_volume
from bundle.data.body import fill_axial_holes, find_largest_part, find_otsu_threshold

_Random = np.random.Generator
#: volumes with one mode, two, a background of one value, whole numbers, and three values with empty bins between them
IMAGES: dict[str, Callable[[_Random], np.ndarray]] = {
    "one mode": lambda random: random.normal(500, 100, (9, 12, 15)),
    "two modes": lambda random: np.where(
        random.random((9, 12, 15)) < 0.3, random.normal(10, 1, 1620).reshape(9, 12, 15), 200
    ),
    "zeros": lambda random: np.where(random.random((9, 12, 15)) < 0.6, 0, random.normal(500, 100, (9, 12, 15))),
    "whole numbers": lambda random: random.integers(0, 300, (9, 12, 15)),
    "three values": lambda random: random.choice(random.normal(0, 100, 3), (9, 12, 15)),
    "skewed": lambda random: np.exp(random.normal(5, 1, (9, 12, 15))),
    "large": lambda random: random.random((9, 12, 15)) * 1e7,
    "constant": lambda random: np.full((4, 4, 4), random.normal()),
}


def threshold_of_itk(values: np.ndarray) -> float:
    otsu = itk.OtsuThresholdImageFilter.New(itk.image_from_array(values))
    otsu.Update()
    return float(otsu.GetThreshold())


@pytest.mark.parametrize("kind", IMAGES)
@pytest.mark.parametrize("seed", range(3))
def test_the_threshold_is_that_of_itk(kind: str, seed: int) -> None:
    values = IMAGES[kind](np.random.default_rng(seed)).astype(np.float32)
    assert np.float32(find_otsu_threshold(values)) == threshold_of_itk(values)


def test_the_threshold_of_real_scans_is_that_of_itk() -> None:
    scans = [scan for scan in find_scans("data/volumes") if scan.name.startswith("mr_b")]
    assert len(scans) > 2
    for scan in scans:
        values = np.asarray(read_volume(list(scan.files), scan.name)[0])[:96, :96, :96].copy()
        assert np.float32(find_otsu_threshold(values)) == threshold_of_itk(values)


@pytest.mark.parametrize("share", [0.05, 0.3, 0.6, 0.95])
def test_the_largest_part_and_its_holes_are_those_of_itk(share: float) -> None:
    mask = np.random.default_rng(1).random((14, 17, 20)) < share
    parts = itk.relabel_component_image_filter(
        itk.connected_component_image_filter(itk.image_from_array(mask.astype(np.uint8)))
    )
    expected = np.array(itk.array_view_from_image(parts) == 1)
    found = find_largest_part(mask)
    assert np.array_equal(found, expected)
    for slice_ in range(mask.shape[2]):
        image = itk.image_from_array(np.ascontiguousarray(expected[:, :, slice_], dtype=np.uint8))
        expected[:, :, slice_] = itk.array_from_image(itk.binary_fillhole_image_filter(image, foreground_value=1)) > 0
    assert np.array_equal(fill_axial_holes(found), expected)


def test_of_equal_parts_the_first_is_the_largest() -> None:
    mask = np.zeros((3, 3, 9), dtype=bool)
    mask[2, 2, 6:8] = mask[0, 0, 1:3] = mask[1, 1, 4] = True
    assert np.argwhere(find_largest_part(mask)).tolist() == [[0, 0, 1], [0, 0, 2]]
