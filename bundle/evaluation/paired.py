# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""The difference of two results on the same cases: its size, an interval, and how likely chance alone makes it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import permutation_test, rankdata

__all__ = ["Difference", "compare_areas", "compare_pairs", "roc_area"]


@dataclass(frozen=True)
class Difference:
    """The second result minus the first.

    Attributes:
        first: mean of the first, on the cases that both have.
        second: mean of the second.
        mean: of the differences.
        low: lower end of its bootstrap interval; NaN with one person.
        high: upper end.
        p: of a two-sided paired permutation test.
        exact: whether all permutations were looked at, not a random draw of them.
        n: cases with a finite value in both.
        people: groups among them: cases of one are flipped and drawn together.
        left_out: cases in which one of the values is missing or infinite.
    """

    first: float
    second: float
    mean: float
    low: float
    high: float
    p: float
    exact: bool
    n: int
    people: int
    left_out: int = 0


def compare_pairs(
    first: np.ndarray,
    second: np.ndarray,
    groups: Sequence[str],
    *,
    resamples: int = 9999,
    confidence: float = 0.95,
    seed: int = 0,
) -> Difference:
    """Compares paired values. Of several classes, each counts alike: the mean of the classes' means is compared.

    The test flips the signs of the differences, of all cases of a person at once. With few people all ways to do so are
    looked at, so that p is exact; with many, `resamples` of them are drawn, seeded.

    Args:
        first: values ``[cases, classes]``; NaN where there is none.
        second: likewise.
        groups: the person of each case.
        resamples: of the bootstrap, and of the test where it is not exact.
        confidence: of the interval.
        seed: of the draws.
    """
    known = np.isfinite(first) & np.isfinite(second)
    classes, cases = known.any(0), known.any(1)
    left_out = int((~known[:, classes].all(1)).sum()) if classes.any() else len(known)
    if not cases.any():
        return _nothing(0, 0, left_out)
    known = known[:, classes]
    a, b = (np.where(known, values[:, classes], 0.0) for values in (first, second))
    codes = np.unique(np.asarray(groups, dtype=str), return_inverse=True)[1]
    people = np.unique(codes[cases])
    member = (codes[None] == people[:, None]).astype(np.float64)  # [people, cases]
    sums, counts = member @ (b - a), member @ known
    shares = (sums / counts.sum(0)).mean(1)  # of each person in the mean difference
    p, exact = _flip(shares, resamples, seed)
    weights = np.random.default_rng(seed).multinomial(len(people), [1 / len(people)] * len(people), resamples)
    low, high = _ends(_ratios(weights @ sums, weights @ counts), confidence, len(people))
    one, other = (float((values.sum(0) / known.sum(0)).mean()) for values in (a, b))
    return Difference(one, other, float(shares.sum()), low, high, p, exact, int(cases.sum()), len(people), left_out)


def compare_areas(
    first: np.ndarray,
    second: np.ndarray,
    labels: np.ndarray,
    groups: Sequence[str],
    *,
    resamples: int = 1999,
    confidence: float = 0.95,
    seed: int = 0,
) -> Difference:
    """Compares the areas under the ROC curves of two scores of the same cases.

    The test swaps the two scores of a person's cases. It swaps ranks, so that scales of the scores do not matter.

    Args:
        first: scores ``[cases]``.
        second: likewise.
        labels: 1 or 0; NaN where it is not known.
        groups: the person of each case.
        resamples: of the bootstrap and the test.
        confidence: of the interval.
        seed: of the draws.
    """
    known = np.isfinite(first) & np.isfinite(second) & np.isfinite(labels)
    positive = labels[known] == 1
    ranks = np.stack([rankdata(scores[known]) for scores in (first, second)])
    codes = np.unique(np.asarray(groups, dtype=str)[known], return_inverse=True)[1]
    count, left_out = int(codes.max(initial=-1)) + 1, int((~known).sum())
    if not positive.any() or positive.all():
        return _nothing(int(known.sum()), count, left_out)
    areas = [roc_area(scores, positive) for scores in ranks]
    observed = areas[1] - areas[0]
    generator = np.random.default_rng(seed)
    swapped = generator.integers(0, 2, (resamples, count))[:, codes]
    drawn = [
        roc_area(np.where(swap, ranks[0], ranks[1]), positive) - roc_area(np.where(swap, ranks[1], ranks[0]), positive)
        for swap in swapped
    ]
    p = (1 + int((np.abs(drawn) >= abs(observed) - 1e-12).sum())) / (resamples + 1)
    members = [np.flatnonzero(codes == code) for code in range(count)]
    differences = []
    for people in generator.integers(0, count, (resamples, count)):
        cases = np.concatenate([members[person] for person in people])
        if 0 < positive[cases].sum() < len(cases):
            one, other = (roc_area(scores[cases], positive[cases]) for scores in ranks)
            differences.append(other - one)
    low, high = _ends(np.array(differences), confidence, count)
    return Difference(areas[0], areas[1], observed, low, high, p, False, int(known.sum()), count, left_out)


def roc_area(scores: np.ndarray, positive: np.ndarray) -> float:
    """The area under the ROC curve: how often a positive case scores more than a negative one, ties counting half."""
    count = int(positive.sum())
    return float((rankdata(scores)[positive].sum() - count * (count + 1) / 2) / (count * (len(scores) - count)))


def _nothing(n: int, people: int, left_out: int) -> Difference:
    return Difference(math.nan, math.nan, math.nan, math.nan, math.nan, math.nan, True, n, people, left_out)


def _flip(shares: np.ndarray, resamples: int, seed: int) -> tuple[float, bool]:
    """The p of the sign-flip test, and whether it is exact."""
    if len(shares) < 2:
        return 1.0, True
    exact = 2.0 ** len(shares) <= resamples + 1
    found = permutation_test(
        (shares,), lambda x, axis: x.sum(axis=axis), permutation_type="samples", vectorized=True,
        n_resamples=np.inf if exact else resamples, batch=1000, alternative="two-sided", random_state=seed,
    )  # fmt: skip
    return float(found.pvalue), exact


def _ratios(sums: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """The mean, over the last axis, of those ratios that there are."""
    present = counts > 0
    ratios = np.divide(sums, counts, out=np.zeros_like(sums), where=present)
    return np.where(present.any(-1), ratios.sum(-1) / np.maximum(present.sum(-1), 1), np.nan)


def _ends(drawn: np.ndarray, confidence: float, people: int) -> tuple[float, float]:
    drawn = drawn[np.isfinite(drawn)]
    if people < 2 or not len(drawn):  # one person tells nothing of how people differ
        return math.nan, math.nan
    tail = 50 * (1 - confidence)
    low, high = np.percentile(drawn, [tail, 100 - tail])
    return float(low), float(high)
