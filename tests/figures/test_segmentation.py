# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
from __future__ import annotations

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure

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


def test_a_volume_has_its_name_and_each_plane_the_sides_of_the_patient(monkeypatch: pytest.MonkeyPatch):
    written: list[str] = []
    write, head = Axes.text, Figure.text
    monkeypatch.setattr(Axes, "text", lambda ax, x, y, s, **more: written.append(s) or write(ax, x, y, s, **more))
    monkeypatch.setattr(Figure, "text", lambda f, x, y, s, **more: written.append(s) or head(f, x, y, s, **more))
    _, label, nothing, _ = volume()
    draw(label, nothing, f"{'long/' * 20}scan_a.nii.gz")
    title, name, *others = written
    assert title == "x" and name.endswith("long/scan_a.nii.gz") and len(name) == 60
    assert others == [*"RLAP", "S 3", *"RLSI", "A 5", *"APSI", "R 3"]


def test_volumes_stand_beside_each_other_and_a_legend_of_many_classes_has_lines():
    image, label, nothing, spacing = volume()
    one, two, three = (
        draw_segmentation([cut_slices("a", image, label, nothing, spacing, classes=12)] * n, classes=["a"], title="x")
        for n in (1, 2, 3)
    )
    assert two.shape[0] == one.shape[0] < three.shape[0] and one.shape[1] < two.shape[1] == three.shape[1]
    slices = [cut_slices("a", image, label, nothing, spacing, classes=12)]
    named = draw_segmentation(slices, classes=[f"rib_{number}" for number in range(12)], title="x")
    assert named.shape[0] > one.shape[0] and named.shape[1] == one.shape[1]


def test_the_slices_are_those_with_the_most_labelled_voxels_and_an_image_of_one_value_is_black():
    _, label, _, spacing = volume()
    cut = cut_slices("a", np.ones(SIZE, np.float32), label, None, spacing, classes=1)
    assert cut.indices == [3, 5, 3] and cut.aspects == [1.0, 2.0, 2.0]
    assert all((pictures[0] == 0).all() and (pictures[1] > 0).any() for pictures in cut.pictures)
