# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""ROC AUC against the count of ordered pairs, the curves' area, and the mean over windows."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
import torch
from ignite.engine import Engine

from bundle.figures.roc import draw_roc, roc_curve
from bundle.tasks.classification import FindingsROCAUC, LossOfAllVolumes, MaskedBCEWithLogitsLoss, WindowMean
from bundle.tasks.classification.metrics import roc_auc
from bundle.training import PerClass

NAN = math.nan


def by_pairs(scores: list[float], labels: list[float]) -> float:
    """Share of the pairs of a positive and a negative volume in which the positive has the larger score."""
    positive = [score for score, label in zip(scores, labels) if label == 1]
    negative = [score for score, label in zip(scores, labels) if label == 0]
    won = sum((p > n) + 0.5 * (p == n) for p in positive for n in negative)
    return won / (len(positive) * len(negative))


@pytest.fixture
def scored() -> tuple[torch.Tensor, torch.Tensor]:
    """Scores with ties, and labels of three findings of which a third is not known; the last has one class only."""
    generator = torch.Generator().manual_seed(5)
    scores = torch.randint(0, 12, (40, 3), generator=generator) / 4 - 1
    labels = torch.randint(0, 2, (40, 3), generator=generator).float()
    labels[torch.rand(40, 3, generator=generator) < 1 / 3] = NAN
    labels[:, 2] *= 0
    return scores, labels


def test_area_is_the_share_of_ordered_pairs_among_the_known(scored):
    scores, labels = scored
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        areas = roc_auc(scores, labels).tolist()
    for number in range(2):
        assert areas[number] == pytest.approx(by_pairs(scores[:, number].tolist(), labels[:, number].tolist()))
    assert math.isnan(areas[2])


def test_scores_of_unknown_entries_do_not_matter(scored):
    scores, labels = scored
    changed = torch.where(labels.isnan(), 100.0 * torch.randn(40, 3), scores)
    assert torch.equal(roc_auc(scores, labels).nan_to_num(-1), roc_auc(changed, labels).nan_to_num(-1))


def test_the_engine_gets_the_mean_each_finding_and_the_loss_of_all_known_entries(scored):
    scores, labels = scored
    engine = Engine(lambda _, batch: ([scores[i] for i in batch], [labels[i] for i in batch]))
    FindingsROCAUC().attach(engine, "auc")
    LossOfAllVolumes(MaskedBCEWithLogitsLoss()).attach(engine, "loss")
    PerClass(metric="auc", classes=["x", "y", "z"], name="auc").attach(engine)
    for _ in range(2):  # nothing is left over from the pass before
        metrics = engine.run([range(15), range(15, 39), range(39, 40)]).metrics
    expected = [by_pairs(scores[:, i].tolist(), labels[:, i].tolist()) for i in range(2)]
    assert metrics["auc"] == pytest.approx(np.mean(expected))
    assert [metrics["auc/x"], metrics["auc/y"]] == pytest.approx(expected)
    assert "auc/z" not in metrics  # no figure for one class
    known = ~labels.isnan()
    terms = torch.nn.BCEWithLogitsLoss()(scores[known], labels[known])
    assert metrics["loss"] == pytest.approx(terms.item(), rel=1e-5)


def test_the_area_below_the_drawn_curve_is_the_same(scored):
    scores, labels = (column[:, 0].numpy() for column in scored)
    known = ~np.isnan(labels)
    false, true = roc_curve(scores[known], labels[known])
    assert (false[0], true[0], false[-1], true[-1]) == (0, 0, 1, 1)
    assert np.trapezoid(true, false) == pytest.approx(by_pairs(scores.tolist(), labels.tolist()))


def drawn(scores: torch.Tensor, labels: torch.Tensor, findings: list[str]) -> np.ndarray:
    return draw_roc(scores, labels, roc_auc(scores, labels).tolist(), findings=findings, title="epoch 1")


def test_curves_are_drawn_for_many_findings_and_none(scored):
    scores, labels = scored
    pixels = drawn(scores.repeat(1, 8), labels.repeat(1, 8), findings=[f"f{i}" for i in range(24)])
    assert pixels.dtype == np.uint8 and pixels.ndim == 3
    empty = drawn(scores[:, 2:], labels[:, 2:], findings=["z"])
    assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > len(np.unique(empty.reshape(-1, 3), axis=0))


def test_a_large_volume_gets_the_mean_over_windows_that_cover_it():
    image = torch.rand(2, 1, 11, 4, 6)
    seen = []

    def network(windows: torch.Tensor) -> torch.Tensor:
        assert windows.shape[1:] == (1, 4, 4, 4)
        seen.append(len(windows))
        return torch.stack([windows.mean((1, 2, 3, 4)), windows.amax((1, 2, 3, 4))], dim=1)

    mean = WindowMean((4, 4, 4), sw_batch_size=3, overlap=0.25)(image, network)
    starts = [(x, 0, z) for x in (0, 3, 6, 7) for z in (0, 2)]  # every 3 voxels, the last at the border
    for sample, given in zip(image, mean):
        windows = [sample[0, x : x + 4, y : y + 4, z : z + 4] for x, y, z in starts]
        torch.testing.assert_close(given[0], torch.stack([window.mean() for window in windows]).mean())
        torch.testing.assert_close(given[1], torch.stack([window.max() for window in windows]).mean())
    assert seen == [6, 6, 4]  # three windows of two volumes at a time
