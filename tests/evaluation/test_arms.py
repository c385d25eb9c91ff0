# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""bundle/evaluation/arms.py: the verdict on two ways to train."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from bundle.evaluation.arms import ArmComparison, compare_arms


def runs(shift: float, seeds: int = 3, people: int = 20, spread: float = 0.0, scans: int = 1) -> list[dict[str, Any]]:
    """Runs of two arms: `shift` is what the second has more, `spread` by how much that differs between seeds."""
    generator = np.random.default_rng(0)
    rows = []
    for seed in range(seeds):
        base = generator.normal(0.7, 0.05, (people, scans))
        gain = shift + spread * (seed - (seeds - 1) / 2) + generator.normal(0, 0.01, (people, scans))
        for arm, values in (("scratch", base), ("weights", base + gain)):
            dice = {f"{n}_{scan}": float(values[n, scan]) for n in range(people) for scan in range(scans)}
            rows.append({"arm": arm, "seed": seed, "dice": dice})
    return rows


def compare(rows: list[dict[str, Any]]) -> ArmComparison:
    person = {scan: scan.partition("_")[0] for scan in rows[0]["dice"]}
    return compare_arms(rows, first="scratch", second="weights", labels=5, person=person, resamples=1999)


@pytest.mark.parametrize(
    ("shift", "verdict", "words"),
    [(0.05, "helps", "weights helps"), (-0.05, "harms", "weights harms"), (0.0, "no difference seen", "no difference")],
)
def test_the_verdict_is_in_plain_words_with_its_numbers(shift: float, verdict: str, words: str):
    found = compare(runs(shift))
    assert found.verdict == verdict and words in found.sentence() and found.warning == ""
    assert found.difference == pytest.approx(shift, abs=0.01) and found.low < found.difference < found.high
    assert "on 20 people who were never trained on, with 3 draws of labelled people" in found.sentence()


def test_seeds_that_disagree_widen_the_interval_until_nothing_is_claimed():
    steady, unsteady = compare(runs(0.02)), compare(runs(0.02, spread=0.05))
    assert steady.verdict == "helps" and unsteady.verdict == "no difference seen"
    assert unsteady.p < 0.05, "the people alone would have said so"
    assert unsteady.high - unsteady.low > 3 * (steady.high - steady.low)


@pytest.mark.parametrize(("seeds", "people"), [(1, 20), (3, 5)])
def test_too_few_people_or_seeds_give_no_verdict(seeds: int, people: int):
    found = compare(runs(0.1, seeds=seeds, people=people))
    assert found.verdict == "too few for a verdict" and "too few" in found.sentence()
    assert found.warning.startswith("with 5 labelled people, only ")


def test_scans_of_one_person_are_one_person():
    assert compare(runs(0.05, people=4, scans=5)).people == 4


def test_only_seeds_that_both_arms_have_count():
    rows = runs(0.05)
    assert compare([row for row in rows if (row["arm"], row["seed"]) != ("weights", 2)]).seeds == 2
    assert compare([row for row in rows if row["arm"] == "scratch"]).verdict == "too few for a verdict"
