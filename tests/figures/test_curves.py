# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
from __future__ import annotations

import matplotlib.colors
import numpy as np

from bundle.figures.curves import draw_curves

ROWS = [{"epoch": 1.0, "a": 3.0, "b_predictor": 4.0}, {"epoch": 2.0, "a": 2.0}, {"epoch": 3.0, "a": 1.0, "c": 5.0}]


def test_each_metric_is_a_line_through_the_epochs_that_have_it():
    figure = draw_curves(ROWS, {"left": {"a": "an a", "c": "a c"}, "right": {"a": "an a"}})
    left, right = figure.axes
    assert (left.get_ylabel(), right.get_ylabel()) == ("left", "right")
    a, c = left.lines
    np.testing.assert_array_equal(a.get_xydata(), [[1, 3], [2, 2], [3, 1]])
    np.testing.assert_array_equal(c.get_xydata(), [[3, 5]])
    assert c.get_marker() == ".", "a single point has no line"
    assert [text.get_text() for text in left.get_legend().get_texts()] == ["an a", "a c"]


def test_baselines_are_grey_and_do_not_take_a_colour():
    (axes,) = draw_curves(ROWS, {"y": {"b_predictor": "zero", "a": "loss"}}).axes
    colours = [matplotlib.colors.to_hex(line.get_color()) for line in axes.lines]
    assert colours == ["#7f7f7f", "#1f77b4"]


def test_before_the_first_epoch_the_picture_is_empty():
    (axes,) = draw_curves([], {"y": {"a": "loss"}}).axes
    assert not axes.lines and axes.get_legend() is None


def test_a_point_of_the_last_epoch_lies_within_a_picture_of_all_epochs():
    rows = [*ROWS, {"epoch": 4.0, "a": 1.0, "dice": 0.84, "dice of a class": 0.83}]
    left, right = draw_curves(rows, {"loss": {"a": "loss"}, "Dice": {"dice": "mean", "dice of a class": "one"}}).axes
    assert left.get_xlim() == right.get_xlim() and right.get_ylim()[0] == 0
    assert right.get_ylim()[1] > 0.86, "not hidden by the frame"


def test_one_epoch_is_marked_as_one():
    (axes,) = draw_curves(ROWS[:1], {"y": {"a": "loss"}}).axes
    low, high = axes.get_xlim()
    assert [tick for tick in axes.get_xticks() if low <= tick <= high] == [1]
