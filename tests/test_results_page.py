# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""docs/explanation/results.md and the README: their tables hold the means of the recorded runs."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from statistics import fmean

import pytest
from scipy.stats import ttest_rel

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs/explanation/results.md").read_text()
README = (ROOT / "README.md").read_text()
TRANSFER = json.loads((ROOT / "docs/figures/transfer.json").read_text())
TODAY = json.loads((ROOT / "docs/figures/transfer_today.json").read_text())  # today's recipe and weights
PEOPLE = json.loads((ROOT / "docs/figures/shipped_people.json").read_text())
MORE_PEOPLE = json.loads((ROOT / "docs/figures/shipped_people_more.json").read_text())
METHOD = json.loads((ROOT / "docs/figures/method_study.json").read_text())["results"]
SPEED = json.loads((ROOT / "docs/figures/benchmark.json").read_text())["rows"]

STUDY = (ROOT / "scripts/studies/people.md").read_text()
PEOPLE_COUNTS = {"two people": "2", "four people": "4", "five people": "5"}
TASKS = {"tissues in brain MR": "brain", "organs in chest CT": "chest"}
BUDGETS = {"a quarter of a brain": "quarter", "half a brain": "half", "one side": "half"}
ARMS = {
    "none (`base`)*": "base",
    "untrained encoder": "untrained",
    "dense encoder*": "dense",
    "single cells as masks": "uniform masks",
    "masks of 96 mm": "physical masks",
    "two levels of Mask-in-Mask": "2 levels",
    "three levels": "3 levels",
    "alignment of depths*": "depth alignment",
    "decoder to half the resolution": "decoder stride 2",
    "SegResNetDS's decoder, histogram": "full decoder, histogram",
}


def table(page: str, first_column: str, columns: int = 2) -> list[list[str]]:
    """The rows of the table whose first heading is that; an empty cell of the first columns has the value above it."""
    lines = page.splitlines()
    start = next(number for number, line in enumerate(lines) if line.startswith(f"| {first_column} |"))
    rows = []
    for line in lines[start + 2 :]:
        if not line.startswith("|"):
            break
        rows.append(
            [cell.strip().strip("*") if number else cell.strip() for number, cell in enumerate(line.split("|")[1:-1])]
        )
    for above, row in pairwise(rows):
        row[:columns] = [cell or old for cell, old in zip(row[:columns], above)]
    return rows


def dice(runs: list[dict], task: str, labels: str, steps: int, arm: str) -> dict[int, float]:
    """Mean Dice in % by seed: over classes, then over test volumes."""
    wanted = (task, labels, steps, arm)
    runs = [run for run in runs if (run["task"], run["labels"], run["steps"], run["arm"]) == wanted]
    return {run["seed"]: 100 * fmean(fmean(classes) for classes in run["dice"].values()) for run in runs}


def people_runs(data: str, labelled: str, steps: int, arm: str, runs: list[dict] = PEOPLE) -> list[dict]:
    wanted = (data, labelled, steps, arm)
    return [run for run in runs if (run["data"], run["labelled"], run["steps"], run["arm"]) == wanted]


def people_dice(data: str, labelled: str, steps: int, arm: str, runs: list[dict] = PEOPLE) -> dict[int, float]:
    """Mean Dice in % over the classes, by draw of the labelled people."""
    return {run["draw"]: 100 * fmean(run["dice"]) for run in people_runs(data, labelled, steps, arm, runs)}


def ceiling(data: str, labelled: str, steps: int) -> list[float]:
    """Dice from scratch with all people labelled, on as many test people as with `labelled` ones."""
    tested = {run["people"] for run in people_runs(data, labelled, steps, "scratch")}
    runs = people_runs(data, "all", steps, "scratch")
    return [100 * fmean(run["dice"]) for run in runs if run["people"] in tested]


def test_dice_of_the_shipped_weights_and_of_own_scans():
    rows = table(README, "task")
    assert len(rows) == 6
    for task, labels, steps, *cells in rows:
        if labels.endswith(" people"):
            case = (task.removesuffix(" in MR").replace(" ", "_"), PEOPLE_COUNTS[labels], int(steps))
            found = [people_dice(*case, arm) for arm in ("scratch", "pretrained", "own people")]
        else:
            wanted = (TASKS[task], BUDGETS[labels], int(steps))
            found = [dice(TODAY, *wanted, "scratch"), dice(TODAY, *wanted, "pretrained"), {}]
        for by_seed, cell in zip(found, cells, strict=True):
            assert sorted(by_seed) == (list(range(5)) if cell else [])
            assert not cell or float(cell) == pytest.approx(fmean(by_seed.values()), abs=0.051)


def test_the_table_of_people():
    """Draws, mean, difference, p and the share of the gap of every row are those of the recorded runs."""
    rows = table(STUDY, "data")
    assert len(rows) >= 20
    arms = {"shipped": "pretrained"}
    for data, labelled, steps, arm, *cells in rows:
        case = (data.replace(" ", "_"), labelled, int(steps))
        runs, scratch = people_dice(*case, arms.get(arm, arm)), people_dice(*case, "scratch")
        assert [cell != "" for cell in cells[:5]] == [draw in runs for draw in range(5)]
        assert all(not cell or float(cell) == pytest.approx(runs[n], abs=0.051) for n, cell in enumerate(cells[:5]))
        assert float(cells[5]) == pytest.approx(fmean(runs.values()), abs=0.051)
        if arm != "scratch":
            pairs = [(runs[draw], scratch[draw]) for draw in runs]
            assert float(cells[6].split()[0]) == pytest.approx(fmean(a - b for a, b in pairs), abs=0.051)
            assert float(cells[7]) == pytest.approx(ttest_rel(*zip(*pairs)).pvalue, rel=0.06)
            above, below = ceiling(*case), fmean(scratch[draw] for draw in runs)
            assert bool(cells[8]) == bool(above)
            if above:
                share = 100 * (fmean(runs.values()) - below) / (fmean(above) - below)
                assert float(cells[8].removesuffix(" %")) == pytest.approx(share, abs=0.51)


def test_more_draws_of_the_shipped_weights():
    rows = table(STUDY, "set")
    assert len(rows) == 4
    for data, labelled, steps, draws, *cells in rows:
        case = (data.replace(" ", "_"), labelled, int(steps))
        shipped, scratch = (
            people_dice(*case, arm) | people_dice(*case, arm, MORE_PEOPLE) for arm in ("pretrained", "scratch")
        )
        assert sorted(shipped) == sorted(scratch) == list(range(int(draws)))
        pairs = [(shipped[draw], scratch[draw]) for draw in sorted(shipped)]
        assert [float(cell) for cell in cells[:2]] == pytest.approx(
            [fmean(scratch.values()), fmean(shipped.values())], abs=0.051
        )
        mean, *each = (float(word.strip("(,)")) for word in cells[2].split())
        assert mean == pytest.approx(fmean(a - b for a, b in pairs), abs=0.051)
        assert each == pytest.approx([a - b for a, b in pairs], abs=0.051)
        assert float(cells[3]) == pytest.approx(ttest_rel(*zip(*pairs)).pvalue, abs=0.0051)


def test_todays_recipe_from_scratch_and_pre_trained():
    rows = table(PAGE, "weights", columns=4)
    assert len(rows) == 11
    for weights, task, labels, steps, *cells in rows:
        if labels.endswith(" people"):
            case = (task.removesuffix(" in MR").replace(" ", "_"), PEOPLE_COUNTS[labels], int(steps))
            arms = ("scratch", {"shipped": "pretrained", "own scans": "own people"}[weights])
            scratch, pretrained = (people_dice(*case, arm) for arm in arms)
        else:
            wanted = (TASKS[task], BUDGETS[labels], int(steps))
            scratch, pretrained = (dice(TODAY, *wanted, arm) for arm in ("scratch", "pretrained"))
        assert sorted(scratch) == sorted(pretrained) == list(range(5))
        first, second = ([by_seed[seed] for seed in range(5)] for by_seed in (pretrained, scratch))
        assert float(cells[0]) == pytest.approx(fmean(second), abs=0.051)
        assert float(cells[1]) == pytest.approx(fmean(first), abs=0.051)
        assert float(cells[2]) == pytest.approx(fmean(first) - fmean(second), abs=0.051)
        assert float(cells[3]) == pytest.approx(ttest_rel(first, second).pvalue, rel=0.1, abs=0.0051)


def test_dice_from_scratch_and_pre_trained():
    rows = table(PAGE, "task")
    assert len(rows) == 6
    for task, labels, steps, *cells in rows:
        scratch, pretrained = (
            dice(TRANSFER, TASKS[task], BUDGETS[labels], int(steps), arm) for arm in ("scratch", "pretrained")
        )
        assert len(scratch) == len(pretrained) == 5
        assert float(cells[0]) == pytest.approx(fmean(scratch.values()), abs=0.051)
        assert float(cells[1]) == pytest.approx(fmean(pretrained.values()), abs=0.051)
        first, second = ([by_seed[seed] for seed in range(5)] for by_seed in (pretrained, scratch))
        assert float(cells[2]) == pytest.approx(fmean(first) - fmean(second), abs=0.051)
        assert float(cells[3]) == pytest.approx(ttest_rel(first, second).pvalue, rel=0.1)


def test_parts_of_the_method():
    rows = table(PAGE, "change")
    columns = ("reconstruction CT", "reconstruction MR", "fitted CT", "fitted MR", "step seconds")
    assert len(rows) == len(ARMS)
    for change, *cells in rows:
        seeds = METHOD[ARMS[change]].values()
        assert len(seeds) == (8 if change.endswith("*") else 3)
        for column, cell in zip(columns, cells, strict=True):
            values = [seed[column] for seed in seeds if column in seed]
            assert bool(cell) == bool(values), (change, column)
            if cell:
                assert float(cell) == pytest.approx(fmean(values), abs=0.0051), (change, column)


def test_seconds_and_memory():
    candidates = ("cells", "dense channels-last", "minkowski", "spark")
    rows = table(PAGE, "network")
    assert len(rows) == 6
    for case, masked, *cells in rows:
        ratio = int(masked.removesuffix(" %")) / 100
        key, what = ("peak_mib" if "MiB" in case else "seconds"), ("step" if "step" in case else "encoder")
        for candidate, cell in zip(candidates, cells, strict=True):
            wanted = (what, candidate, 96, ratio)
            found = [row[key] for row in SPEED if (row["what"], row["candidate"], row["size"], row["ratio"]) == wanted]
            assert bool(cell) == bool(found), (case, masked, candidate)
            if cell:
                assert float(cell) == pytest.approx(found[0], abs=0.051 if key == "seconds" else 0.51)
