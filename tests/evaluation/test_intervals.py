# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""bundle/evaluation/intervals.py: means, and intervals over people."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from bundle.errors import UserError
from bundle.evaluation import Bootstrap

VALUES = np.random.default_rng(1).beta(8, 2, 60)
PEOPLE = [str(number) for number in range(60)]


def test_the_interval_is_that_of_scipys_percentile_bootstrap() -> None:
    found = Bootstrap(PEOPLE, resamples=4000).mean(VALUES)
    expected = stats.bootstrap((VALUES,), np.mean, n_resamples=4000, method="percentile", random_state=0)
    assert found.mean == pytest.approx(VALUES.mean(), abs=1e-12) and found.n == 60
    assert found.low == pytest.approx(expected.confidence_interval.low, abs=0.004)
    assert found.high == pytest.approx(expected.confidence_interval.high, abs=0.004)


def test_scans_of_one_person_are_drawn_together() -> None:
    twice = np.repeat(VALUES, 2)
    together = Bootstrap([name for name in PEOPLE for _ in range(2)]).mean(twice)
    once, apart = Bootstrap(PEOPLE).mean(VALUES), Bootstrap([str(n) for n in range(120)]).mean(twice)
    assert (together.low, together.high) == pytest.approx((once.low, once.high), abs=1e-12)
    assert apart.high - apart.low < 0.85 * (together.high - together.low)


def test_the_same_seed_draws_the_same() -> None:
    one, same, other = (Bootstrap(PEOPLE, seed=seed).mean(VALUES) for seed in (3, 3, 4))
    assert one == same and one.low != other.low


def test_values_that_are_not_there_and_infinite_ones_are_left_out_and_counted() -> None:
    found = Bootstrap(["a", "b", "c", "d"]).mean([0.5, math.nan, math.inf, 1.0])
    assert (found.mean, found.n, found.infinite) == (0.75, 2, 1)
    assert found.to_json() == {"mean": 0.75, "low": 0.5, "high": 1.0, "n": 2, "infinite": 1}
    nothing = Bootstrap(["a", "b"]).mean([math.nan, math.nan])
    assert math.isnan(nothing.mean) and nothing.to_json() == {"mean": None, "low": None, "high": None, "n": 0}


def test_one_person_has_no_interval() -> None:
    found = Bootstrap(["a", "a"]).mean([0.25, 0.75])
    assert found.mean == 0.5 and math.isnan(found.low)


def test_the_mean_over_classes_counts_a_rare_class_like_others() -> None:
    columns = {"often": [1.0, 1.0, 1.0, 1.0], "rare": [math.nan, math.nan, math.nan, 0.0]}
    found = Bootstrap(["a", "b", "c", "d"]).mean_of_means(columns)
    assert (found.mean, found.n, found.high) == (0.5, 4, 1.0)  # a draw without the rare class has the other alone


def test_any_statistic_of_resampled_cases_has_an_interval() -> None:
    bootstrap = Bootstrap(PEOPLE, resamples=500)
    one, nothing = bootstrap.statistics(lambda cases: (float(np.mean(VALUES[cases])), math.nan), n=(60, 0))
    expected = bootstrap.mean(VALUES)
    assert (one.mean, one.low, one.high) == pytest.approx((expected.mean, expected.low, expected.high), abs=1e-12)
    assert one.n == 60 and math.isnan(nothing.mean) and math.isnan(nothing.low)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"resamples": 0}, "--resamples 0"),
        ({"resamples": 2.5}, "--resamples 2.5"),
        ({"confidence": 95}, "--confidence"),
    ],
)
def test_options_that_do_not_fit_are_one_line(options: dict, said: str) -> None:
    with pytest.raises(UserError, match=said):
        Bootstrap(PEOPLE, **options)
