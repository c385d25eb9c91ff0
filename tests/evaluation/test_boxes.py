# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""bundle/evaluation/boxes.py: average precision and FROC of few boxes, counted by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from bundle.evaluation import FROC_RATES, BoxMatches, froc_curve
from bundle.tasks.detection import AveragePrecision

SIZE = 10.0


def at(*places: float) -> np.ndarray:
    """Cubes along x."""
    return np.array([[x, 0, 0, x + SIZE, SIZE, SIZE] for x in places]).reshape(-1, 6)


def numbers(*values: float) -> np.ndarray:
    return np.array(values, dtype=np.int64)


def example() -> BoxMatches:
    """Two scans of two classes: a found box, one that overlaps by 1/3, a missed one, and two false positives."""
    predicted = [
        (at(0, 205, 300), numbers(0, 0, 0), np.array([0.9, 0.8, 0.7])),
        (at(0, 400), numbers(1, 0), np.array([0.6, 0.85])),
    ]
    true = [(at(0, 200), numbers(0, 0)), (at(0, 100), numbers(1, 0))]
    return BoxMatches(predicted, true, ["a", "b", "nowhere"])


def test_average_precision_is_its_area_by_hand() -> None:
    found = example().metrics(np.array([0, 1]))
    # of a, by falling score: hit, false, hit at IoU up to 1/3, false; three boxes to find
    loose = (34 * 1.0 + 33 * 2 / 3) / 101  # COCO reads the precision at 101 recalls
    tight = 34 * 1.0 / 101
    assert found["ap_iou_0.10"]["a"] == pytest.approx(loose) and found["ap_iou_0.50"]["a"] == pytest.approx(tight)
    assert found["map"]["a"] == pytest.approx((5 * loose + 4 * tight) / 9)  # thresholds 0.1 to 0.3, and 0.35 to 0.5
    assert found["map"]["b"] == pytest.approx(1)
    assert found["map"]["mean"] == pytest.approx((1 + found["map"]["a"]) / 2)
    assert found["recall"]["a"] == pytest.approx((5 * 2 / 3 + 4 / 3) / 9)
    assert all(math.isnan(values["nowhere"]) for values in found.values())


def test_froc_reads_the_sensitivity_at_each_rate_by_hand() -> None:
    matches = example()
    rates, sensitivity = froc_curve(*matches.scores(np.array([0, 1]), 0), 3, 2)
    corners = np.array(sorted(zip(rates, sensitivity)))
    assert corners == pytest.approx(np.array([(0, 0), (0, 1 / 3), (0.5, 1 / 3), (0.5, 2 / 3), (1, 2 / 3)]))
    expected = [1 / 3, 1 / 3, 2 / 3, 2 / 3, 2 / 3, 2 / 3, 2 / 3]
    assert len(FROC_RATES) == len(expected)
    assert matches.metrics(np.array([0, 1]))["froc"]["a"] == pytest.approx(np.mean(expected))


def test_the_last_box_counts_where_every_box_is_found() -> None:
    rates, sensitivity = froc_curve(np.array([0.5]), np.array([0.9, 0.3]), 2, 1)
    assert sorted(zip(rates.tolist(), sensitivity.tolist())) == [(0, 0), (0, 0.5), (1, 0.5), (1, 1)]


def test_the_mean_is_that_of_the_validation_in_training() -> None:
    metric = AveragePrecision(classes=["a", "b", "nowhere"])
    metric.update((
        [
            {"box": torch.from_numpy(at(0, 205, 300)), "label": torch.tensor([0, 0, 0]),
             "label_scores": torch.tensor([0.9, 0.8, 0.7])},
            {"box": torch.from_numpy(at(0, 400)), "label": torch.tensor([1, 0]),
             "label_scores": torch.tensor([0.6, 0.85])},
        ],
        [
            {"box": torch.from_numpy(at(0, 200)), "label": torch.tensor([0, 0])},
            {"box": torch.from_numpy(at(0, 100)), "label": torch.tensor([1, 0])},
        ],
    ))  # fmt: skip
    assert example().metrics(np.array([0, 1]))["map"]["mean"] == pytest.approx(metric.compute())


def test_hits_misses_and_false_positives_of_a_scan_depend_on_the_score() -> None:
    matches = example()
    assert [matches.count(0, 0, min_score=score) for score in (0.5, 0.75, 0.85)] == [(2, 0, 1), (2, 0, 0), (1, 1, 0)]
    assert matches.count(1, 0, min_score=0.5) == (0, 1, 1) and matches.count(0, 2, min_score=0) == (0, 0, 0)
    predicted, true = matches.found(0, 0)
    assert predicted.tolist() == [True, True, False] and true.tolist() == [True, True]
    assert matches.found(0, 1)[0].size == 0


def test_scans_without_any_box_have_no_metrics_but_false_positives() -> None:
    nothing = (at(), numbers())
    matches = BoxMatches([(at(0), numbers(0), np.array([0.5])), (at(), numbers(), np.zeros(0))], [nothing] * 2, ["a"])
    assert math.isnan(matches.metrics(np.array([0, 1]))["map"]["mean"])
    assert matches.count(0, 0, min_score=0.1) == (0, 0, 1)
