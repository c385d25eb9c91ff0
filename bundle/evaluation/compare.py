# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""Two results on the same cases: their tables put side by side, and the differences of every metric and class."""

from __future__ import annotations

import csv
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from bundle.data.safe_names import cell_text
from bundle.errors import UserError
from bundle.evaluation.paired import Difference, compare_areas, compare_pairs
from bundle.evaluation.summary import shortened_list

__all__ = ["Comparison", "Result", "compare_results", "read_result", "verdict"]

_CASE = ("case", "scan", "volume", "image")
_CLASS = ("class", "finding")
#: columns that measure nothing
_NO_METRIC = {"group", "note", "fold", "label", "probability", "volume_ml", "reference_ml", "seed", "boxes"}
#: errors with a sign are compared by their size
_SIGNED = {"volume_error_ml", "volume_error_percent"}
_LOWER = {"hausdorff95_mm", "surface_distance_mm", "squared_error", "false_positives", "missed"}
_HIGHER = {"dice", "surface_dice", "hits", "average_precision", "recall", "sensitivity", "roc_auc"}
MEAN = "mean"


@dataclass(frozen=True)
class Result:
    """A table of cases.

    Attributes:
        name: what to call it.
        values: by metric, then class, then case.
        groups: the person of each case.
        references: by class and case, what the case was compared with, if the table says it.
    """

    name: str
    values: Mapping[str, Mapping[str, Mapping[str, float]]]
    groups: Mapping[str, str] = field(default_factory=dict)
    references: Mapping[tuple[str, str], float] = field(default_factory=dict)

    @property
    def cases(self) -> list[str]:
        """All cases, in the order of the table."""
        return list(self.groups)


@dataclass(frozen=True)
class Comparison:
    """What differs between two results.

    Attributes:
        names: of the two.
        cases: that both have.
        differences: by metric and class; "mean" is of the classes, each counting alike.
        higher_is_better: for each metric; None where it is not known.
        only: the cases that only the first has, and those that only the second has.
        notes: what a reader must know.
        pairs: by metric and class the two values of each of `cases`.
    """

    names: tuple[str, str]
    cases: list[str]
    differences: Mapping[str, Mapping[str, Difference]]
    higher_is_better: Mapping[str, bool | None]
    only: tuple[list[str], list[str]]
    notes: list[str]
    pairs: Mapping[str, Mapping[str, tuple[list[float], list[float]]]]


def read_result(path: str | os.PathLike[str], name: str = "") -> Result:
    """Reads the folder of an evaluation or of a cross-validation, or a `cases.csv`.

    A table has a row for each case, or for each case and class, and a column for each metric. One of probabilities and
    labels gives the squared error of each case.

    Args:
        path: folder with a `cases.csv`, or the table.
        name: what to call it; "": as the path.

    Raises:
        UserError: if it cannot be read, or a case is in it twice.
    """
    file = Path(path)
    file = file / "cases.csv" if file.is_dir() else file
    try:
        with file.open(newline="", encoding="utf-8-sig") as opened:
            rows = list(csv.DictReader(opened, restval=""))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(
            f"{file} cannot be read ({type(error).__name__}): give the folder of an evaluation, or its cases.csv"
        ) from error
    columns = list(rows[0]) if rows else []
    case_column = next((column for column in _CASE if column in columns), None)
    if case_column is None:
        raise UserError(f"{file} has no column {' or '.join(_CASE[:2])}: give a table with a row for each case")
    class_column = next((column for column in _CLASS if column in columns), "")
    values: dict[str, dict[str, dict[str, float]]] = {}
    groups: dict[str, str] = {}
    references: dict[tuple[str, str], float] = {}
    for row in rows:
        case, of = cell_text(row[case_column]), cell_text(row.get(class_column, "")) or "all"
        groups.setdefault(case, row.get("group", "") or case)
        if (of, case) in references:
            raise UserError(f"{file} has {case} ({of}) twice: give a table with one row for each case and class")
        reference = row.get("reference_ml", row.get("label", ""))
        references[of, case] = _number(reference)
        for metric, value in _measured(row, {case_column, class_column}).items():
            values.setdefault(metric, {}).setdefault(of, {})[case] = value
    return Result(name or _name(Path(path)), values, groups, references)


def compare_results(
    first: Result, second: Result, *, resamples: int = 9999, confidence: float = 0.95, seed: int = 0
) -> Comparison:
    """Compares two results on the cases that both have.

    Args:
        first: such as the baseline.
        second: such as the new method; a difference is the second minus the first.
        resamples: of the bootstrap, and of the permutation test where there are too many people for an exact one.
        confidence: of the intervals.
        seed: of the draws.

    Raises:
        UserError: if they have no case, no metric, or no class in common.
    """
    cases = [case for case in first.cases if case in second.groups]
    if not cases:
        raise UserError(
            f"{first.name} and {second.name} have no case in common, such as {first.cases[0]} and {second.cases[0]}: "
            "compare results on the same scans"
        )
    metrics = [metric for metric in first.values if metric in second.values]
    if not metrics:
        raise UserError(f"{first.name} and {second.name} have no metric in common: give two results of one task")
    groups = [first.groups[case] for case in cases]
    options: dict[str, Any] = {"resamples": resamples, "confidence": confidence, "seed": seed}
    pairs = {metric: _pair(first, second, metric, cases) for metric in metrics}
    if not any(pairs.values()):
        one, other = (next(iter(result.values[metrics[0]]), "none") for result in (first, second))
        raise UserError(
            f"{first.name} and {second.name} have no class in common, such as {one} and {other}: give a class one name "
            "in both"
        )
    differences: dict[str, dict[str, Difference]] = {}
    for metric, by_class in pairs.items():
        tables = {of: np.array(both, dtype=np.float64) for of, both in by_class.items()}
        found = {of: compare_pairs(t[0][:, None], t[1][:, None], groups, **options) for of, t in tables.items()}
        if len(tables) > 1:
            stacked = np.stack(list(tables.values()), axis=-1)  # [2, cases, classes]
            found[MEAN] = compare_pairs(stacked[0], stacked[1], groups, **options)
        differences[metric] = found
    if "probability" in pairs:
        differences["roc_auc"] = {
            of: compare_areas(
                np.array(one), np.array(other), _labels(first, of, cases), groups, **{**options, "resamples": 1999}
            )
            for of, (one, other) in pairs.pop("probability").items()
        }
        del differences["probability"]
    return Comparison(
        names=(first.name, second.name),
        cases=cases,
        differences={metric: found for metric, found in differences.items() if any(d.n for d in found.values())},
        higher_is_better={metric: _direction(metric) for metric in differences},
        only=([c for c in first.cases if c not in second.groups], [c for c in second.cases if c not in first.groups]),
        notes=_notes(first, second, cases),
        pairs=pairs,
    )


def verdict(difference: Difference, names: tuple[str, str], higher_is_better: bool | None, level: float = 0.05) -> str:
    """What a difference means, in plain words."""
    if not difference.n:
        return "nothing to compare"
    if 2.0 ** (1 - difference.people) >= level:
        return f"too few people ({difference.people}) to tell: no split of so few can give p < {level:g}"
    if not difference.p < level:
        return "no difference seen"
    if higher_is_better is None:
        return f"{names[1]} is {'higher' if difference.mean > 0 else 'lower'}"
    return f"{names[int((difference.mean > 0) == higher_is_better)]} is better"


def _pair(
    first: Result, second: Result, metric: str, cases: Sequence[str]
) -> dict[str, tuple[list[float], list[float]]]:
    """The two values of each case, by class."""
    one, other = first.values[metric], second.values[metric]
    return {
        of: ([one[of].get(case, math.nan) for case in cases], [other[of].get(case, math.nan) for case in cases])
        for of in one
        if of in other
    }


def _labels(result: Result, of: str, cases: Sequence[str]) -> np.ndarray:
    return np.array([result.references.get((of, case), math.nan) for case in cases], dtype=np.float64)


def _notes(first: Result, second: Result, cases: Sequence[str]) -> list[str]:
    notes = []
    for one, other in ((first, second), (second, first)):
        if alone := [case for case in one.cases if case not in other.groups]:
            notes.append(f"{len(alone)} cases are in {one.name} only, and not compared: {shortened_list(alone, 8)}")
    here, there = ({of for of, _ in result.references} for result in (first, second))
    if different := sorted(here ^ there):
        notes.append(f"classes that only one of them has are not compared: {shortened_list(different, 8)}")
    changed = sorted({
        case
        for (of, case), value in first.references.items()
        if case in set(cases) and not _alike(value, second.references.get((of, case), math.nan))
    })  # fmt: skip
    if changed:
        notes.append(
            f"the references of {len(changed)} cases differ between both, so check them: {shortened_list(changed, 8)}"
        )
    return notes


def _alike(one: float, other: float) -> bool:
    return not (math.isfinite(one) and math.isfinite(other)) or math.isclose(one, other, rel_tol=1e-3, abs_tol=1e-6)


def _measured(row: Mapping[str, str], keys: set[str]) -> dict[str, float]:
    """The metrics of a row of a table."""
    found: dict[str, float] = {}
    for column, cell in row.items():
        if column in keys or column in _NO_METRIC or column is None:
            continue
        value = _number(cell)
        if cell and math.isnan(value) and cell.strip().lower() != "nan":
            continue  # text
        found[f"absolute_{column}" if column in _SIGNED else column] = abs(value) if column in _SIGNED else value
    if "probability" in row:
        probability, label = _number(row["probability"]), _number(row.get("label", ""))
        found |= {"probability": probability, "squared_error": (probability - label) ** 2}
    return found


def _direction(metric: str) -> bool | None:
    if metric in _HIGHER:
        return True
    return False if metric in _LOWER or metric.startswith("absolute_") else None


def _number(cell: str | None) -> float:
    try:
        return float(cell or "nan")
    except ValueError:
        return math.nan


def _name(path: Path) -> str:
    return path.parent.name if path.name == "cases.csv" else path.stem if path.is_file() else path.resolve().name
