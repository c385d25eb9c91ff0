# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
from __future__ import annotations

import numpy as np
import pytest
from matplotlib.axes import Axes

from bundle.figures.segmentation import cut_slices, draw_segmentation

SIZE = (10, 12, 8)


def volume() -> tuple[np.ndarray, np.ndarray, np.ndarray, tuple[float, ...]]:
    image = np.random.default_rng(0).normal(size=SIZE).astype(np.float32)
    label = np.zeros(SIZE, dtype=np.int64)
    label[2:5, 3:9, 2:6] = 1
    return image, label, np.zeros_like(label), (1.0, 1.0, 2.0)


def colourful(pixels: np.ndarray) -> float:
    """Share of the pixels that are no grey."""
    return float((np.ptp(pixels.astype(int), axis=-1) > 20).mean())


def draw(label: np.ndarray, prediction: np.ndarray | None, name: str = "scan_a") -> np.ndarray:
    image, _, _, spacing = volume()
    return draw_segmentation(
        [cut_slices(name, image, label, prediction, spacing, classes=1)], classes=["liver"], title="x"
    )


def test_what_is_labelled_or_predicted_is_coloured():
    _, label, nothing, _ = volume()
    neither, one, both = (colourful(draw(a, b)) for a, b in ((nothing, nothing), (label, nothing), (label, label)))
    assert neither < one < both


def test_without_a_prediction_image_and_label_are_drawn():
    _, label, nothing, _ = volume()
    assert draw(label, None).shape[1] < draw(label, nothing).shape[1]


def test_a_row_has_the_name_of_its_volume_and_the_sides_of_the_patient(monkeypatch: pytest.MonkeyPatch):
    written: list[str] = []
    write, name = Axes.text, Axes.set_ylabel
    monkeypatch.setattr(Axes, "text", lambda ax, x, y, s, **more: written.append(s) or write(ax, x, y, s, **more))
    monkeypatch.setattr(Axes, "set_ylabel", lambda ax, s, **more: written.append(s) or name(ax, s, **more))
    _, label, nothing, _ = volume()
    draw(label, nothing, "patients/long/name/of/a/folder/scan_a.nii.gz")
    assert written == [*"RLAP", "S 3", *"RLSI", "A 5", *"APSI", "R 3", "…e/of/a/folder/scan_a.nii.gz"]


def test_the_slices_are_those_with_the_most_labelled_voxels_and_an_image_of_one_value_is_black():
    _, label, _, spacing = volume()
    cut = cut_slices("a", np.ones(SIZE, np.float32), label, None, spacing, classes=1)
    assert cut.indices == [3, 5, 3] and cut.aspects == [1.0, 2.0, 2.0]
    assert all((pictures[0] == 0).all() and (pictures[1] > 0).any() for pictures in cut.pictures)
