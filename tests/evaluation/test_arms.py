# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""bundle/evaluation/arms.py: the verdict on two ways to train."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from bundle.evaluation.arms import ArmComparison, compare_arms, mean_over_people


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


def test_means_are_over_people_and_leave_out_what_has_no_value():
    person = {"a_0": "a", "a_1": "a", "a_2": "a", "b_0": "b", "c_0": "c"}
    dice = {"a_0": 0.9, "a_1": 0.6, "a_2": None, "b_0": 0.25, "c_0": None}
    assert mean_over_people(dice, person) == pytest.approx((0.75 + 0.25) / 2)
    assert math.isnan(mean_over_people({"c_0": None}, person))


def test_the_verdicts_means_are_those_over_people():
    rows = runs(0.05, people=6, scans=3)
    for row in rows:
        row["dice"] = {scan: value for scan, value in row["dice"].items() if scan[0] == "0" or scan.endswith("_0")}
    found, person = compare(rows), {scan: scan.partition("_")[0] for scan in rows[0]["dice"]}
    for arm, mean in zip(found.arms, found.means):
        assert mean == pytest.approx(
            np.mean([mean_over_people(row["dice"], person) for row in rows if row["arm"] == arm])
        )


def test_pairs_without_a_value_count_in_nothing():
    rows = runs(0.05, seeds=4)
    whole = compare([row for row in rows if row["seed"] < 3])
    for row in rows:
        if row["seed"] == 3:  # a seed in which one arm has no value at all
            row["dice"] = {scan: None if row["arm"] == "weights" else value for scan, value in row["dice"].items()}
    found = compare(rows)
    assert found.means == pytest.approx(whole.means) and found.difference == pytest.approx(whole.difference)
    assert found.p == whole.p and found.people == 20 and len(found.per_seed) == 3
    assert found.low == pytest.approx(whole.low, abs=2e-3)
    for row in rows:
        row["dice"]["7_0"] = None
    without = compare(rows)
    assert without.people == 19 and math.isfinite(without.low)


def test_a_class_that_one_arm_invents_counts_0_for_that_arm_alone():
    """The reference lacks the class in a person's second scan."""
    rows = runs(0.0, people=8, scans=2)
    for row in rows:
        for n in range(8):
            row["dice"][f"{n}_1"] = None if row["arm"] == "scratch" else 0.0
    found = compare(rows)
    assert found.verdict == "harms" and found.means[1] == pytest.approx(found.means[0] / 2, abs=0.02)


def test_no_value_anywhere_is_no_verdict():
    rows = runs(0.0)
    for row in rows:
        row["dice"] = dict.fromkeys(row["dice"])
    assert compare(rows).verdict == "too few for a verdict"


def test_only_seeds_that_both_arms_have_count():
    rows = runs(0.05)
    assert compare([row for row in rows if (row["arm"], row["seed"]) != ("weights", 2)]).seeds == 2
    assert compare([row for row in rows if row["arm"] == "scratch"]).verdict == "too few for a verdict"
