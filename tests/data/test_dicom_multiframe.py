# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""bundle/data/dicom: enhanced multi-frame objects, against the numbers that were written."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from bundle.data import find_volumes, read_volume
from bundle.errors import VolumeError
from tests.data.dicom_files import COUNT, PIXEL, ROW, STEP, enhanced, image, place, planes, right_affine, save

PLACES = [place(k) for k in range(COUNT)]


def read(images: list, folder: Path):
    save(images, folder)
    (found,) = find_volumes(folder)
    return read_volume(found.files, "series")


def assert_is(volume, values: np.ndarray, affine: np.ndarray) -> None:
    np.testing.assert_allclose(volume[0].numpy(), values.transpose(2, 1, 0), rtol=1e-6)
    np.testing.assert_allclose(volume.affine.numpy(), affine, atol=1e-5)


def test_frames_in_any_order_are_sorted_by_their_places(tmp_path: Path) -> None:
    stored, order = planes(), np.random.default_rng(0).permutation(COUNT)
    volume = read([enhanced(stored[order], [PLACES[k] for k in order])], tmp_path)
    assert_is(volume, 2.0 * stored, right_affine())


def test_each_frame_has_its_slope_and_intercept(tmp_path: Path) -> None:
    stored, slopes = planes(), 0.3 + 0.02 * np.arange(COUNT)
    volume = read([enhanced(stored, PLACES, slopes=list(slopes))], tmp_path)
    assert_is(volume, stored * slopes[:, None, None] + np.arange(COUNT)[:, None, None], right_affine())


def test_one_frame_per_file_is_one_volume(tmp_path: Path) -> None:
    stored = planes()
    assert_is(
        read([enhanced(stored[k : k + 1], PLACES[k : k + 1]) for k in range(COUNT)], tmp_path),
        2.0 * stored,
        right_affine(),
    )


def test_several_files_of_several_frames_are_one_volume(tmp_path: Path) -> None:
    stored = planes()
    parts = [enhanced(stored[part], PLACES[part]) for part in (slice(1, None, 2), slice(0, None, 2))]
    assert_is(read(parts, tmp_path), 2.0 * stored, right_affine())


def test_tilted_frames_keep_their_places(tmp_path: Path) -> None:
    stored, column = planes(), np.array([0, 0.8, -0.6])
    assert_is(read([enhanced(stored, PLACES, column=column)], tmp_path), 2.0 * stored, right_affine(column=column))


def test_frames_over_time_are_refused_even_where_nothing_moves(tmp_path: Path) -> None:
    stored = np.concatenate([planes()] * 2)
    images = [enhanced(stored, PLACES * 2, times=[1] * COUNT + [2] * COUNT)]
    with pytest.raises(VolumeError, match="4D series"):
        read(images, tmp_path)


def test_stacks_that_are_no_regular_volume_are_refused(tmp_path: Path) -> None:
    positions = [place(k if k < 4 else k + 2.5) for k in range(COUNT)]
    images = [enhanced(planes(), positions, stacks=["1"] * 4 + ["2"] * 4)]
    with pytest.raises(VolumeError, match="holds 2 stacks of slices"):
        read(images, tmp_path)


def test_stacks_that_lie_between_one_another_are_refused(tmp_path: Path) -> None:
    images = [enhanced(planes(), PLACES, stacks=["1", "2"] * 4)]
    with pytest.raises(VolumeError, match=r"slices of 2 stacks that lie between one another; split it into one volume"):
        read(images, tmp_path)


def test_a_time_that_counts_the_slices_is_no_series_over_time(tmp_path: Path) -> None:
    stored = planes()
    assert_is(read([enhanced(stored, PLACES, times=range(1, COUNT + 1))], tmp_path), 2.0 * stored, right_affine())


def test_frames_without_functional_groups_are_refused(tmp_path: Path) -> None:
    one = image(planes(1)[0], 0)
    one.NumberOfFrames, one.PixelData = COUNT, one.PixelData * COUNT
    with pytest.raises(VolumeError, match="slices without a position"):
        read([one], tmp_path)


def test_groups_that_do_not_fit_the_frames_are_refused(tmp_path: Path) -> None:
    one = enhanced(planes(), PLACES)
    one.PerFrameFunctionalGroupsSequence = one.PerFrameFunctionalGroupsSequence[:-2]
    with pytest.raises(VolumeError, match="has 8 frames, but describes 6"):
        read([one], tmp_path)


def test_the_numbers_of_these_tests_are_those_of_the_standard() -> None:
    np.testing.assert_allclose(right_affine() @ [1, 0, 0, 0], [-PIXEL[1], 0, 0, 0])
    np.testing.assert_allclose(right_affine() @ [0, 0, 2, 1], [40, 50, 10 + 2 * STEP, 1])
    assert ROW.tolist() == [1, 0, 0]
