# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
from __future__ import annotations

import nibabel
import numpy as np
import pytest

from bundle.figures.planes import PLANES
from bundle.figures.reconstruction import PanelCrop, _pictures, draw_panels, draw_volume, plane_indices


def crop(**changes):
    """16 x 8 x 4 voxels in cells of 4, one of them hidden: the most to the right, front and head."""
    hidden = np.zeros((4, 2, 1), dtype=bool)
    hidden[-1, -1, -1] = True
    fields = {
        "name": "volume 0", "spacing": (1.0, 1.0, 2.0), "visible": ~hidden, "hidden": hidden,
        "image": np.linspace(0, 100, 16 * 8 * 4).reshape(16, 8, 4), "reconstruction": np.full((16, 8, 4), 50.0),
        "foreground": np.ones((16, 8, 4), dtype=bool), "valid": np.ones((16, 8, 4), dtype=bool),
    }  # fmt: skip
    return PanelCrop(**{**fields, **changes})


@pytest.mark.parametrize("plane", PLANES, ids=lambda plane: plane.name)
def test_each_edge_of_a_picture_is_where_its_letter_says(plane):
    # each voxel's position along R, A, S; nibabel knows which letters are the ends of the axes
    ends = nibabel.orientations.aff2axcodes(np.eye(4), labels=(("L", "R"), ("P", "A"), ("I", "S")))
    position = dict(zip(ends, np.meshgrid(*[np.arange(5)] * 3, indexing="ij"), strict=True))
    opposite = {"L": "R", "P": "A", "I": "S"}

    def towards(letter):
        return plane.cut(-position[opposite[letter]] if letter in opposite else position[letter], 2)

    assert (np.diff(towards(plane.left), axis=1) < 0).all()
    assert (np.diff(towards(plane.right), axis=1) > 0).all()
    assert (np.diff(towards(plane.top), axis=0) < 0).all()
    assert (np.diff(towards(plane.bottom), axis=0) > 0).all()


def test_the_slices_go_through_the_most_hidden_foreground():
    foreground = np.zeros((16, 8, 4), dtype=bool)
    foreground[13, :, :2] = True
    assert plane_indices(crop(foreground=foreground)) == (13, 6, 1)


def test_only_hidden_cells_show_the_reconstruction_and_the_error():
    original, masked, pasted, error = _pictures(crop())
    inside = np.zeros((16, 8, 4), dtype=bool)
    inside[12:, 4:] = True
    assert np.array_equal(np.isnan(masked), inside)
    assert np.array_equal(pasted[~inside], original[~inside])
    assert np.ptp(pasted[inside]) == 0
    assert np.isnan(error[~inside]).all()
    low, high = np.percentile(crop().image, (1, 99))
    np.testing.assert_allclose(error[inside], 100 * np.abs(crop().image[inside] - 50) / (high - low))


def test_padding_does_not_make_the_grey_window_of_a_thin_volume():
    valid = np.zeros((64, 64, 4), dtype=bool)
    valid[:, 31] = True
    image = np.where(valid, np.linspace(0, 100, valid.size).reshape(valid.shape), -3)
    cells = np.ones((16, 16, 1), dtype=bool)
    original, *_, error = _pictures(
        crop(image=image, reconstruction=image + 1, foreground=valid, valid=valid, visible=~cells, hidden=cells)
    )
    low, high = np.percentile(image[valid], (1, 99))
    np.testing.assert_allclose(original[valid], (image[valid] - low) / (high - low))
    np.testing.assert_allclose(error, 100 / (high - low))


def test_a_crop_of_nothing_but_padding_is_drawn():
    assert draw_panels([crop(valid=np.zeros((16, 8, 4), dtype=bool))], title="epoch 1").shape[2] == 3


def test_a_constant_crop_is_drawn():
    pixels = draw_panels([crop(image=np.ones((16, 8, 4)))], title="epoch 1")
    assert pixels.dtype == np.uint8
    assert pixels.shape[2] == 3


def test_a_volume_has_a_row_for_each_plane_in_the_proportions_of_its_millimetres():
    cells = np.ones((4, 2, 1), dtype=bool)  # all hidden: each masked input is one area of blue
    pixels = draw_volume(crop(spacing=(10.0, 20.0, 30.0), visible=~cells, hidden=cells), title="run")
    blue = np.argwhere((pixels == [0x30, 0x50, 0x7A]).all(-1))
    lines = np.unique(blue[:, 0])
    rows = np.split(lines, np.flatnonzero(np.diff(lines) > 10) + 1)
    width = np.ptp(blue[:, 1]) + 1
    # axial: 160 by 160 mm; coronal and sagittal: 160 wide, 120 high, less the lines at the edges
    assert np.allclose([(np.ptp(row) + 1) / width for row in rows], [1, 0.75, 0.75], atol=0.04)


def test_a_spine_does_not_make_a_picture_that_no_screen_shows():
    shape = (16, 16, 400)
    ones = np.ones(shape, dtype=bool)
    cells = np.ones((4, 4, 100), dtype=bool)
    image = np.random.default_rng(0).random(shape)
    pixels = draw_volume(
        crop(image=image, reconstruction=image, foreground=ones, valid=ones, visible=~cells, hidden=cells), title="run"
    )
    assert pixels.shape[0] < 1.1 * pixels.shape[1]


def test_crops_are_two_beside_each_other_with_a_row_for_each_plane():
    cells = np.ones((4, 4, 4), dtype=bool)  # all hidden: each masked input is one area of blue
    ones = np.ones((16, 16, 16), dtype=bool)
    image = np.random.default_rng(0).random(ones.shape)
    one = crop(spacing=(1.0, 1.0, 1.0), image=image, reconstruction=image, foreground=ones, valid=ones, visible=~cells,
               hidden=cells)  # fmt: skip
    for count, lines, beside in ((1, 1, 1), (2, 1, 2), (3, 2, 2)):
        pixels = draw_panels([one] * count, title="epoch 1")
        blue = (pixels == [0x30, 0x50, 0x7A]).all(-1)
        # the lines between cells are thinner than 10 pixels, and what is between pictures is wider
        rows, columns = (np.flatnonzero(blue.any(axis)) for axis in (1, 0))
        bands = [np.split(found, np.flatnonzero(np.diff(found) > 10) + 1) for found in (rows, columns)]
        assert [len(found) for found in bands] == [3 * lines, beside]
        left, right = bands[1][0], bands[1][-1]
        under = blue[bands[0][-1]][:, right].any()
        assert blue[bands[0][-1]][:, left].any() and under == (count % beside == 0)
