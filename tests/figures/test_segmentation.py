# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
from __future__ import annotations

import numpy as np

from bundle.figures.segmentation import draw_segmentation

SIZE = (10, 12, 8)


def volume() -> tuple[np.ndarray, np.ndarray, np.ndarray, tuple[float, ...]]:
    image = np.random.default_rng(0).normal(size=SIZE).astype(np.float32)
    label = np.zeros(SIZE, dtype=np.int64)
    label[2:5, 3:9, 2:6] = 1
    return image, label, np.zeros_like(label), (1.0, 1.0, 2.0)


def colourful(pixels: np.ndarray) -> float:
    """Share of the pixels that are no grey."""
    return float((np.ptp(pixels.astype(int), axis=-1) > 20).mean())


def test_what_is_labelled_or_predicted_is_coloured():
    image, label, nothing, spacing = volume()
    neither, one, both = (
        colourful(draw_segmentation([(image, a, b, spacing)], classes=["liver"], title="x"))
        for a, b in ((nothing, nothing), (label, nothing), (label, label))
    )
    assert neither < one < both
