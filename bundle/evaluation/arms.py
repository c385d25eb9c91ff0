# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""Two ways to train, each run with several seeds and measured on the same people: a verdict in plain words."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from bundle.evaluation.paired import compare_pairs

__all__ = ["ArmComparison", "compare_arms"]

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
    were measured. The test flips the sign of a person's mean difference.

    Args:
        rows: of runs, each with `arm`, `seed`, and `dice` by scan.
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
    if not people:
        return ArmComparison((first, second), labels, (math.nan, math.nan), math.nan, math.nan, math.nan, math.nan,
                             0, len(seeds), ())  # fmt: skip
    scans_by_person = [[scan for scan in scans if person[scan] == one] for one in people]
    table = np.array([
        [[np.mean([runs[arm, seed][scan] for scan in theirs]) for theirs in scans_by_person] for seed in seeds]
        for arm in (first, second)
    ])  # fmt: skip
    differences = table[1] - table[0]
    by_person = table.mean(1)
    test = compare_pairs(by_person[0][:, None], by_person[1][:, None], people, resamples=resamples)
    generator = np.random.default_rng(0)
    drawn_seeds = generator.multinomial(len(seeds), [1 / len(seeds)] * len(seeds), resamples) / len(seeds)
    drawn_people = generator.multinomial(len(people), [1 / len(people)] * len(people), resamples) / len(people)
    drawn = np.einsum("rs,sp,rp->r", drawn_seeds, differences, drawn_people)
    low, high = np.percentile(drawn, [2.5, 97.5]) if len(people) > 1 else (math.nan, math.nan)
    return ArmComparison(
        arms=(first, second), labels=labels, means=(float(table[0].mean()), float(table[1].mean())),
        difference=float(differences.mean()), low=float(low), high=float(high), p=test.p, people=len(people),
        seeds=len(seeds), per_seed=tuple(float(value) for value in differences.mean(1)),
    )  # fmt: skip
