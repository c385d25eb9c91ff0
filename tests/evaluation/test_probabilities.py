# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""bundle/evaluation/probabilities.py: another library's values, formulas, what is not known."""

from __future__ import annotations

import math

import numpy as np
import pytest

from bundle.evaluation import probability_metrics, reliability_curve


def example() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(3)
    labels = (rng.random(40) < 0.4).astype(int)
    return np.round(np.clip(0.35 + 0.3 * labels + rng.normal(0, 0.2, 40), 0, 1), 2), labels


def test_areas_and_brier_score_are_those_of_scikit_learn() -> None:
    # scikit-learn 1.9.1: roc_auc_score, average_precision_score, brier_score_loss
    found = probability_metrics(*example())
    expected = (0.856777493606, 0.844729745957, 0.155902500000)
    assert (found["auroc"], found["average_precision"], found["brier"]) == pytest.approx(expected, abs=1e-9)


def test_the_calibration_error_is_the_mean_distance_of_each_bin_from_its_frequency() -> None:
    probabilities, labels = example()
    probabilities = np.clip(probabilities + 0.003, 0, 1)  # between the borders of bins
    number = np.minimum((probabilities * 10).astype(int), 9)
    distances = [abs(probabilities[number == n].mean() - labels[number == n].mean()) for n in number]
    found = probability_metrics(probabilities, labels)
    assert found["calibration_error"] == pytest.approx(np.mean(distances), abs=1e-6)
    mean, frequency, count = reliability_curve(probabilities, labels)
    assert count.sum() == 40 and len(mean) == len(frequency) == len(set(number))


def test_labels_of_one_kind_have_no_area_but_a_calibration() -> None:
    found = probability_metrics(np.array([0.9, 0.7]), np.array([1, 1]))
    assert math.isnan(found["auroc"]) and math.isnan(found["average_precision"])
    assert (found["brier"], found["calibration_error"]) == pytest.approx((0.05, 0.2))
    assert all(math.isnan(value) for value in probability_metrics(np.array([]), np.array([])).values())
