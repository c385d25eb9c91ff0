# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
from __future__ import annotations

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb

from bundle.figures.detection import DrawnVolume, draw_detections
from bundle.figures.froc import draw_froc

BOX = np.array([[20, 20, 4, 30, 28, 12]], dtype=np.float32)


def frame(pixels: np.ndarray, colour: str) -> np.ndarray:
    """Where a colour is."""
    return np.abs(pixels / 255 - to_rgb(colour)).max(axis=-1) < 0.1


def test_true_and_predicted_boxes_are_drawn_where_their_voxels_are():
    image = np.random.default_rng(0).normal(size=(32, 32, 32)).astype(np.float32) * 0.01
    image[20:30, 20:28, 4:12] = 1
    drawn = DrawnVolume(image, (1, 1, 1), BOX, BOX + 40, np.array([0.5]))
    assert drawn.middle == (25, 24, 8)
    pixels = draw_detections([drawn], title="")
    height, width, _ = pixels.shape
    axial = pixels[: height - 40, : width // 3]
    green, bright = frame(axial, "#30e050"), (axial.min(axis=-1) > 200) & (axial.max(axis=-1) < 256)
    rows, columns = np.flatnonzero(green.any(1)), np.flatnonzero(green.any(0))
    inside = axial[rows[0] + 3 : rows[-1] - 2, columns[0] + 3 : columns[-1] - 2]
    assert (inside > 200).all(), "the frame holds something other than the bright block"
    outside = axial[rows[0] - 6 : rows[0] - 3, columns[0] : columns[-1]]
    assert (outside < 150).all() and bright.any()
    assert not frame(axial, "#ff9020").any()  # the prediction is not in these slices


def test_a_row_has_the_name_of_its_volume_and_the_sides_of_the_patient(monkeypatch: pytest.MonkeyPatch):
    written: list[str] = []
    write, name = Axes.text, Axes.set_ylabel
    monkeypatch.setattr(Axes, "text", lambda ax, x, y, s, **more: written.append(s) or write(ax, x, y, s, **more))
    monkeypatch.setattr(Axes, "set_ylabel", lambda ax, s, **more: written.append(s) or name(ax, s, **more))
    drawn = DrawnVolume(np.zeros((32, 32, 32), np.float32), (1, 1, 1), BOX, BOX[:0], np.empty(0), "scan_a.nii.gz")
    draw_detections([drawn], title="")
    assert written == [*"RLAP", "S 8", *"RLSI", "A 24", *"APSI", "R 25", "scan_a.nii.gz"]


def test_boxes_outside_the_image_are_counted_and_drawn_at_its_border():
    image = np.zeros((8, 8, 8), np.float32)
    outside = np.array([[-340, 2, 2, -330, 4, 4], [2, 2, 2, 4, 4, 4]], dtype=np.float64)
    drawn = DrawnVolume(image, (1, 1, 1), outside[:1], outside, np.array([0.5, 0.4]))
    assert drawn.middle == (0, 3, 3)
    assert drawn.count_outside(drawn.true) == drawn.count_outside(drawn.predicted) == 1
    draw_detections([drawn], title="")


def test_the_curve_of_a_perfect_detector_goes_on_to_the_edge():
    curve = np.array([0.0, 0.0]), np.array([0.5, 1.0])
    pixels, empty = (draw_froc({"a": one}, {"a": 1.0}, title="") for one in (curve, (np.empty(0), np.empty(0))))
    columns = np.flatnonzero((pixels[:60, :540].astype(int) - empty[:60, :540]).any(axis=(0, 2)))  # at 1.0
    assert np.ptp(columns) > 450, "of 640 pixels"
