# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
from __future__ import annotations

import numpy as np
import pytest
from matplotlib.axes import Axes

from bundle.figures import contours


@pytest.mark.parametrize("compared", [False, True])
def test_pictures_say_the_sides_of_the_patient_and_which_slice_they_are(
    monkeypatch: pytest.MonkeyPatch, compared: bool
):
    said: list[str] = []
    write = Axes.text

    def look(ax: Axes, x: float, y: float, text: str, **more: object) -> object:
        said.append(text)
        return write(ax, x, y, text, **more)

    monkeypatch.setattr(Axes, "text", look)
    places = np.indices((12, 10, 8))
    labels = ((places[0] == 3) & (places[1] == 4) & (places[2] == 5)).astype(np.uint8)
    reference = np.zeros_like(labels) if compared else None
    contours.draw_contours(places[0] + 0.0, reference, labels, (1.0, 1.0, 2.0), classes=["spleen"], title="case")
    assert "".join(said).startswith("RLAPS 5RLSIA 4APSIR 3")
