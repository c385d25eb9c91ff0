# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""The threshold of a finding: the highest Youden index among all that can be told apart."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest

from bundle.runs import RunFolder
from bundle.tasks.classification import Thresholds, youden_threshold


def index(probabilities: np.ndarray, labels: np.ndarray, threshold: float) -> float:
    found = probabilities >= threshold
    return float(found[labels == 1].mean() - found[labels == 0].mean())


@pytest.mark.parametrize("seed", range(5))
def test_no_other_threshold_has_a_higher_index(seed: int) -> None:
    draw = np.random.default_rng(seed)
    labels = draw.integers(0, 2, 40).astype(float)
    probabilities = np.clip(0.3 * labels + draw.random(40) * 0.7, 0, 1).round(2)  # with ties
    chosen = youden_threshold(probabilities.tolist(), labels.tolist())
    assert chosen is not None
    best = max(index(probabilities, labels, t) for t in np.linspace(0, 1.01, 2003))
    assert index(probabilities, labels, chosen) == pytest.approx(best)


def test_what_is_not_known_does_not_count() -> None:
    nan = float("nan")
    assert youden_threshold([0.2, 0.9, 0.4, 0.3], [0, nan, 1, nan]) == pytest.approx(0.3)


def test_of_equal_ones_the_nearest_to_a_half_is_taken() -> None:
    # the pair in the middle is wrong way round: cuts at 0.15 and at 0.75 are equally good
    assert youden_threshold([0.1, 0.2, 0.7, 0.8], [0, 1, 0, 1]) == pytest.approx(0.75)
    assert youden_threshold([0.1, 0.4, 0.9, 0.95], [0, 1, 0, 1]) == pytest.approx(0.25)


@pytest.mark.parametrize("labels", [[1, 1], [0, 0], [float("nan"), 1]])
def test_one_class_alone_has_none(labels: list[float]) -> None:
    assert youden_threshold([0.2, 0.7], labels) is None


def test_thresholds_are_those_of_the_epochs_table(tmp_path: Path) -> None:
    (tmp_path / "predictions").mkdir()
    with (tmp_path / "predictions/epoch_0003.csv").open("w", newline="") as file:
        csv.writer(file).writerows([
            ["volume", "'=a", "b", "'=a label", "b label"],
            ["x", 0.2, 0.5, 0, 1], ["y", 0.3, 0.1, 1, ""], ["z", 0.9, 0.1, 1, 1],
        ])  # fmt: skip
    about = Thresholds(run_folder=RunFolder(tmp_path), findings=["=a", "b"])
    told = about(3)
    assert told["thresholds"] == {"=a": pytest.approx(0.25), "b": 0.5}
    assert "Youden index of the validation volumes in epoch 3" in told["threshold_rule"]["=a"]
    assert told["threshold_rule"]["b"].startswith("0.5: validation does not know both")
    assert about(4)["thresholds"] == {"=a": 0.5, "b": 0.5}
