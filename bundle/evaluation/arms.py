# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""Two ways to train, each run with several seeds and measured on the same people: a verdict in plain words."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import compress
from typing import Any

import numpy as np

from bundle.evaluation.paired import compare_pairs

__all__ = ["ArmComparison", "compare_arms", "mean_over_people"]

#: below these nothing is said
_FEWEST_PEOPLE, _FEWEST_SEEDS = 6, 2
#: below these a verdict comes with a warning
_FEW_PEOPLE, _FEW_SEEDS = 10, 3


@dataclass(frozen=True)
class ArmComparison:
    """The second arm against the first.

    Attributes:
        arms: the two.
        labels: how many labelled people each training had.
        means: Dice of the two.
        difference: the second's minus the first's.
        low: lower end of the 95 % interval over people and seeds.
        high: upper end.
        p: of a permutation test over people.
        people: how many were measured.
        seeds: how many both arms have.
        per_seed: the difference of each seed.
    """

    arms: tuple[str, str]
    labels: int
    means: tuple[float, float]
    difference: float
    low: float
    high: float
    p: float
    people: int
    seeds: int
    per_seed: tuple[float, ...]

    @property
    def verdict(self) -> str:
        """What to conclude: helps, no difference seen, harms, or too few for a verdict."""
        if self.people < _FEWEST_PEOPLE or self.seeds < _FEWEST_SEEDS:
            return "too few for a verdict"
        if self.p < 0.05 and self.low > 0:
            return "helps"
        return "harms" if self.p < 0.05 and self.high < 0 else "no difference seen"

    @property
    def warning(self) -> str:
        """What speaks against relying on the verdict, or ""."""
        said = []
        if self.people < _FEW_PEOPLE:
            said.append(f"only {self.people} people were measured")
        if self.seeds < _FEW_SEEDS:
            said.append(f"only {self.seeds} draws of labelled people were tried")
        if self.verdict in ("helps", "harms") and min(self.per_seed) < 0 < max(self.per_seed):
            said.append("the draws do not agree on the sign")
        return f"with {self.labels} labelled people, {' and '.join(said)}" if said else ""

    def sentence(self) -> str:
        """The verdict with its numbers."""
        words = {
            "helps": f"{self.arms[1]} helps",
            "harms": f"{self.arms[1]} harms",
            "no difference seen": f"no difference between {self.arms[1]} and {self.arms[0]} was seen",
            "too few for a verdict": f"too few people or seeds for a verdict on {self.arms[1]}",
        }
        interval = f"95 % interval {self.low:+.3f} to {self.high:+.3f}" if math.isfinite(self.low) else "no interval"
        return (
            f"With {self.labels} labelled people {words[self.verdict]}: Dice {self.means[1]:.3f} against "
            f"{self.means[0]:.3f}, a difference of {self.difference:+.3f} ({interval}, p = {self.p:.2g}), on "
            f"{self.people} people who were never trained on, with {self.seeds} draws of labelled people."
        )


def compare_arms(
    rows: Sequence[Mapping[str, Any]],
    *,
    first: str,
    second: str,
    labels: int,
    person: Mapping[str, str],
    resamples: int = 9999,
) -> ArmComparison:
    """Compares two arms on the seeds and scans that both have.

    The interval draws people and seeds, both with replacement: which people were labelled is as much chance as which
    were measured. The test flips the sign of a person's mean difference. A person's value is the mean over their scans.
    Where one of the arms has none for a person and seed, that pair counts in nothing.

    Args:
        rows: of runs, each with `arm`, `seed`, and `dice` by scan, None where it has no value.
        first: the arm to compare with.
        second: the other one.
        labels: how many labelled people the runs had.
        person: of each scan.
        resamples: of the bootstrap and the test.
    """
    runs = {(row["arm"], row["seed"]): row["dice"] for row in rows}
    seeds = sorted(seed for arm, seed in runs if arm == first and (second, seed) in runs)
    scans = [scan for scan in person if seeds and all(scan in runs[arm, s] for arm in (first, second) for s in seeds)]
    people = sorted({person[scan] for scan in scans})
    scans_by_person = [[scan for scan in scans if person[scan] == one] for one in people]
    values = np.array([
        [[_mean([runs[arm, seed][scan] for scan in theirs]) for theirs in scans_by_person] for seed in seeds]
        for arm in (first, second)
    ]).reshape(2, len(seeds), len(people))  # fmt: skip
    known = np.isfinite(values).all(0)  # [seeds, people]
    measured = known.any(0)
    people = [*compress(people, measured)]
    if not people:
        return ArmComparison((first, second), labels, (math.nan, math.nan), math.nan, math.nan, math.nan, math.nan,
                             0, len(seeds), ())  # fmt: skip
    table, known = np.where(known, values, 0.0)[..., measured], known[:, measured]
    differences = table[1] - table[0]
    by_person = table.sum(1) / known.sum(0)
    test = compare_pairs(by_person[0][:, None], by_person[1][:, None], people, resamples=resamples)
    low, high = _interval(differences, known, resamples)
    return ArmComparison(
        arms=(first, second), labels=labels, means=(float(by_person[0].mean()), float(by_person[1].mean())),
        difference=float((by_person[1] - by_person[0]).mean()), low=low, high=high, p=test.p, people=len(people),
        seeds=len(seeds),
        per_seed=tuple(float(d[k].mean()) for d, k in zip(differences, known, strict=True) if k.any()),
    )  # fmt: skip


def mean_over_people(dice: Mapping[str, float | None], person: Mapping[str, str]) -> float:
    """The mean over people of the mean over their scans; NaN if no scan has a value.

    Args:
        dice: by scan, None where it has no value.
        person: of each scan.
    """
    scans: dict[str, list[float | None]] = {}
    for scan, value in dice.items():
        scans.setdefault(person[scan], []).append(value)
    means = [_mean(values) for values in scans.values()]
    return _mean([mean for mean in means if not math.isnan(mean)])


def _mean(values: Sequence[float | None]) -> float:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else math.nan


def _interval(differences: np.ndarray, known: np.ndarray, resamples: int) -> tuple[float, float]:
    """Of the mean over people of their means over seeds; both are drawn.

    Args:
        differences: ``[seeds, people]``, 0 where there is none.
        known: where there is one.
        resamples: how many draws.
    """
    seeds, people = differences.shape
    if people < 2:
        return math.nan, math.nan
    generator = np.random.default_rng(0)
    drawn_seeds = generator.multinomial(seeds, [1 / seeds] * seeds, resamples)
    drawn_people = generator.multinomial(people, [1 / people] * people, resamples)
    counts = drawn_seeds @ known
    means = np.divide(drawn_seeds @ differences, counts, out=np.zeros(counts.shape), where=counts > 0)
    totals = (drawn_people * (counts > 0)).sum(1)
    drawn = (drawn_people * means).sum(1)[totals > 0] / totals[totals > 0]
    low, high = np.percentile(drawn, [2.5, 97.5])
    return float(low), float(high)
