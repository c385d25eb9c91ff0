# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from bundle.figures.planes import PLANES, Row, mark_sides, side_by_side

NAMES = ("axial\noriginal", "axial\nmasked input", "axial\nreconstruction", "axial\nerror")


def pictures(rows: int, columns: int) -> list[np.ndarray]:
    return list(np.random.default_rng(0).uniform(0, 0.9, (len(NAMES), rows, columns, 3)))


def show(row: Row, aspect: float) -> tuple[Axes, FigureCanvasAgg]:
    """The row in axes of the size that drawings give it."""
    figure = Figure(figsize=(7, 1.9), dpi=80)
    ax = figure.add_axes((0, 0, 1, 1))
    ax.imshow(row.pixels, aspect=aspect)
    return ax, FigureCanvasAgg(figure)


@pytest.mark.parametrize("size", [(8, 12), (60, 3)])
def test_a_row_is_its_pictures_and_white_between(size: tuple[int, int]):
    given = pictures(*size)
    pixels, width, step = side_by_side(given, aspect=1)
    assert width == size[1] and step > width
    rest = pixels.copy()
    for number, picture in enumerate(given):
        place = slice(number * step, number * step + width)
        assert np.array_equal(pixels[:, place], picture)
        rest[:, place] = 1
    assert (rest == 1).all() and pixels.shape[1] == 3 * step + width


@pytest.mark.parametrize(("rows", "columns", "aspect"), [(48, 48, 1.0), (90, 12, 1.0), (12, 12, 5.0), (12, 90, 0.4)])
def test_a_name_stands_above_its_picture_and_apart_from_the_next(rows: int, columns: int, aspect: float):
    row = side_by_side(pictures(rows, columns), aspect)
    ax, canvas = show(row, aspect)
    row.write_names(ax, NAMES)
    canvas.draw()
    places = [text.get_window_extent(canvas.get_renderer()) for text in ax.texts]
    for number, place in enumerate(places):
        left, right = (ax.transData.transform((number * row.step + column, 0))[0] for column in (-0.5, row.width - 0.5))
        assert (place.x0 + place.x1) / 2 == pytest.approx((left + right) / 2, abs=1)
        assert place.y0 > ax.get_window_extent().y1
    assert all(one.x1 < other.x0 for one, other in pairwise(places))


def test_the_sides_are_those_of_the_first_picture():
    row = side_by_side(pictures(48, 64), 1.0)
    ax, canvas = show(row, 1.0)
    mark_sides(ax, PLANES[0], 7, row)
    canvas.draw()
    (left, top), (right, bottom) = ax.transData.transform([(-0.5, -0.5), (row.width - 0.5, 47.5)])
    extents = {text.get_text(): text.get_window_extent(canvas.get_renderer()) for text in ax.texts}
    assert extents.keys() == {"R", "L", "A", "P", "S 7"}
    for place in extents.values():
        assert left <= place.x0 and place.x1 <= right and bottom <= place.y0 and place.y1 <= top
    assert (
        extents["R"].x0 - left < right - extents["L"].x1 + 3 and extents["L"].x0 > (left + right) / 2 > extents["R"].x1
    )
