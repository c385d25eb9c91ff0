# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""Means with bootstrap intervals over people."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from tqdm import tqdm

from bundle.errors import UserError

__all__ = ["Bootstrap", "Estimate"]


@dataclass(frozen=True)
class Estimate:
    """A value and its interval.

    Args:
        mean: the value on the cases as they are; NaN where there is none.
        low: lower end of the interval; NaN where there is none.
        high: upper end.
        n: how many cases have a finite value.
        infinite: how many have an infinite one, which no mean can hold.
    """

    mean: float
    low: float
    high: float
    n: int
    infinite: int = 0

    def to_json(self) -> dict[str, Any]:
        """For `results.json`; what is not a number becomes null."""
        ends = {name: getattr(self, name) for name in ("mean", "low", "high")}
        found: dict[str, Any] = {name: value if math.isfinite(value) else None for name, value in ends.items()}
        return {**found, "n": self.n, **({"infinite": self.infinite} if self.infinite else {})}


class Bootstrap:
    """Percentile intervals by drawing people with replacement, seeded.

    All cases of one person are drawn together, so that several scans of one patient do not make an interval look
    narrower than it is.

    Args:
        groups: for each case the person, or whatever else belongs together.
        resamples: how often to draw.
        confidence: of the interval.
        seed: of the draws.

    Raises:
        UserError: if a number does not fit.

    Example:
        >>> from bundle.evaluation import Bootstrap
        >>> dice = [0.91, 0.85, 0.88, 0.67]  # the last two scans are one person's
        >>> found = Bootstrap(["a", "b", "c", "c"], resamples=1000).mean(dice)
        >>> round(found.mean, 4), found.n, found.low < found.mean < found.high
        (0.8275, 4, True)
    """

    def __init__(
        self, groups: Sequence[str], *, resamples: int = 1000, confidence: float = 0.95, seed: int = 0
    ) -> None:
        if isinstance(resamples, bool) or not isinstance(resamples, int) or resamples < 1:
            raise UserError(f"--resamples {resamples!r} does not fit: give a whole number above 0, such as 1000")
        if not 0 < confidence < 1:
            raise UserError(f"--confidence {confidence!r} does not fit: give a share between 0 and 1, such as 0.95")
        self.confidence = confidence
        named, self._codes = np.unique(np.asarray(list(groups), dtype=str), return_inverse=True)
        count = len(named)
        drawn = np.random.default_rng(seed).integers(0, max(count, 1), (resamples, count))
        #: [resamples, people], how often each is drawn
        self._weights = np.stack([np.bincount(row, minlength=count) for row in drawn])

    def mean(self, values: Sequence[float]) -> Estimate:
        """The mean of one value a case. NaN and infinite ones are left out.

        Args:
            values: one for each case, in the order of `groups`.
        """
        return self.mean_of_means({"": values})

    def mean_of_means(self, columns: Mapping[str, Sequence[float]]) -> Estimate:
        """The mean over classes of each class's mean over its cases, so that rare classes count like others.

        Args:
            columns: for each class one value for each case; NaN and infinite ones are left out.
        """
        table = np.array([list(values) for values in columns.values()], dtype=np.float64)
        known = np.isfinite(table)
        people = self._weights.shape[1]
        sums, counts = (
            np.stack([np.bincount(self._codes, row, minlength=people) for row in rows]).astype(np.float64)
            for rows in (np.where(known, table, 0.0), known.astype(np.float64))
        )
        mean = _mean_of_ratios(sums.sum(1), counts.sum(1))
        resampled = _mean_of_ratios(self._weights @ sums.T, self._weights @ counts.T)
        low, high = self._ends(resampled)
        cases = known.any(0) if len(table) else np.zeros(0, dtype=bool)
        return Estimate(float(mean), low, high, int(cases.sum()), int(np.isinf(table).sum()))

    def statistics(self, function: Callable[[np.ndarray], Sequence[float]], n: Sequence[int]) -> list[Estimate]:
        """Any values of a set of cases, such as areas under curves.

        Args:
            function: from the indices of cases, some of them several times, to the values; NaN where there is none.
            n: how many cases each value is of.
        """
        cases = [np.flatnonzero(self._codes == code) for code in range(self._weights.shape[1])]
        everything = np.arange(len(self._codes))
        drawn = (np.concatenate([np.tile(c, w) for c, w in zip(cases, row)]) for row in _shown(self._weights))
        resampled = np.array([function(indices) for indices in drawn], dtype=np.float64).reshape(-1, len(n))
        values = zip(function(everything), resampled.T, n, strict=True)
        return [Estimate(float(value), *self._ends(column), count) for value, column, count in values]

    def _ends(self, resampled: np.ndarray) -> tuple[float, float]:
        """The interval; one person tells nothing of how people differ."""
        resampled = resampled[np.isfinite(resampled)]
        if self._weights.shape[1] < 2 or not resampled.size:
            return math.nan, math.nan
        tail = 50 * (1 - self.confidence)
        low, high = np.percentile(resampled, [tail, 100 - tail])
        return float(low), float(high)


def _shown(rows: np.ndarray) -> Iterable[np.ndarray]:
    return tqdm(rows, desc="intervals", delay=2)


def _mean_of_ratios(sums: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """The mean, over the last axis, of those ratios that there are; NaN without any."""
    ratios = np.divide(sums, counts, out=np.zeros_like(sums), where=counts > 0)
    present = (counts > 0).sum(-1)
    return np.where(present > 0, ratios.sum(-1) / np.maximum(present, 1), np.nan)
