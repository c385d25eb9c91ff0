# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""bundle/evaluation/paired.py against enumeration, scipy's bootstrap and MONAI's area."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from monai.metrics import compute_roc_auc
from scipy.stats import bootstrap

from bundle.evaluation.paired import compare_areas, compare_pairs, roc_area


def column(*values: float) -> np.ndarray:
    return np.array(values)[:, None]


def test_the_test_looks_at_all_flips_of_few_people():
    first, second = column(0.5, 0.7, 0.6, 0.4, 0.8, 0.55), column(0.6, 0.75, 0.58, 0.6, 0.9, 0.6)
    found = compare_pairs(first, second, list("abcdef"))
    differences = (second - first)[:, 0]
    means = [np.mean(signs * differences) for signs in itertools.product([-1, 1], repeat=6)]
    # twice the smaller tail, which is how scipy defines two sides
    tail = np.mean([mean >= differences.mean() - 1e-12 for mean in means])
    assert found.exact and found.p == pytest.approx(2 * tail)
    assert (found.mean, found.n, found.people) == (pytest.approx(differences.mean()), 6, 6)
    assert (found.first, found.second) == (pytest.approx(first.mean()), pytest.approx(second.mean()))


def test_many_people_are_drawn_and_the_draw_is_seeded():
    generator = np.random.default_rng(0)
    first = generator.normal(0, 1, (80, 1))
    same, other = (first + shift + generator.normal(0, 1, (80, 1)) for shift in (0.0, 0.8))
    people = [str(n) for n in range(80)]
    better = compare_pairs(first, other, people)
    assert not better.exact and better.p < 0.001 and compare_pairs(first, same, people).p > 0.05
    assert better == compare_pairs(first, other, people) != compare_pairs(first, other, people, seed=1)


def test_the_interval_is_scipys():
    generator = np.random.default_rng(1)
    first, second = generator.normal(0, 1, (2, 40, 1))
    found = compare_pairs(first, second, [str(n) for n in range(40)])
    expected = bootstrap(((second - first)[:, 0],), np.mean, method="percentile", n_resamples=9999, random_state=3)
    low, high = expected.confidence_interval
    assert (found.low, found.high) == (pytest.approx(low, abs=0.03), pytest.approx(high, abs=0.03))


def test_scans_of_one_person_count_as_one_witness():
    first = np.zeros((40, 1))
    second = np.repeat([1.0, -0.5, 0.8, 0.7], 10)[:, None]
    scans = compare_pairs(first, second, [str(n) for n in range(40)])
    people = compare_pairs(first, second, np.repeat(list("abcd"), 10).tolist())
    assert people.mean == scans.mean and people.people == 4 and scans.p < 0.001
    assert people.p == pytest.approx(4 / 16)  # of 16 ways of signs only those of 0.5 reach as far, on both sides
    assert people.high - people.low > 1.5 * (scans.high - scans.low)


def test_classes_count_alike_and_what_is_not_finite_is_left_out():
    first = np.array([[0.0, np.nan], [0.0, np.nan], [0.0, 0.0], [0.0, np.inf]])
    second = np.array([[1.0, 1.0], [1.0, np.nan], [1.0, 3.0], [1.0, 1.0]])
    found = compare_pairs(first, second, list("abcd"))
    assert found.mean == pytest.approx((1 + 3) / 2) and (found.n, found.left_out) == (4, 3)
    assert np.isnan(compare_pairs(first[:1, 1:], second[:1, 1:], ["a"]).p)


def test_one_person_has_no_interval_and_no_difference_is_no_finding():
    assert np.isnan(compare_pairs(column(0.1, 0.2), column(0.3, 0.3), ["a", "a"]).low)
    same = compare_pairs(column(*range(9)), column(*range(9)), list("abcdefghi"))
    assert same.p == 1 and same.mean == 0


def test_the_area_is_monais_with_ties():
    generator = np.random.default_rng(0)
    scores, labels = generator.integers(0, 8, 60).astype(float), generator.integers(0, 2, 60)
    assert roc_area(scores, labels == 1) == pytest.approx(compute_roc_auc(torch.tensor(scores), torch.tensor(labels)))


def test_areas_of_equal_rankings_do_not_differ_and_of_better_ones_do():
    generator = np.random.default_rng(0)
    labels = np.repeat([0.0, 1.0], 40)
    noise, people = generator.normal(0, 1, 80), [str(n) for n in range(80)]
    same = compare_areas(noise, np.exp(3 * noise), labels, people, resamples=499)  # another scale, the same order
    assert same.mean == 0 and same.p == 1 and (same.low, same.high) == (0, 0)
    better = compare_areas(noise, noise + 2 * labels, labels, people, resamples=499)
    assert better.mean > 0.2 and better.low > 0 and better.p <= 0.01
    assert np.isnan(compare_areas(noise, noise, np.ones(80), people).p)
