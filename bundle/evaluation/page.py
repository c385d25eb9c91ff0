# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""The page of an evaluation."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from bundle.evaluation.folder import EvaluationFolder
from bundle.evaluation.tables import read_table
from bundle.reports import Case, Report

__all__ = ["write_page"]


def write_page(
    output: EvaluationFolder,
    *,
    lead: str,
    summary: Sequence[Sequence[str]],
    settings: Mapping[str, Any],
    notes: Sequence[str] = (),
    captions: Mapping[str, str] | None = None,
    explanation: str = "",
    cases: Iterable[Case] = (),
    count: int = 0,
    classes: Mapping[str, int] | None = None,
    hash_names: bool = False,
) -> Path:
    """Writes `report.html`: the means first, then what is to be noted, the pictures, each case, and the settings.

    Args:
        output: where the tables and pictures are, and where the page goes.
        lead: a sentence that says what was evaluated.
        summary: of `summary_rows`.
        settings: as for `write_results`.
        notes: what a reader must know.
        captions: of pictures, by their names without an ending.
        explanation: of the values, in a sentence or two.
        cases: for the viewer, made one at a time.
        count: how many these are; 0: no viewer.
        classes: value in the cases' label maps by the name of each class.
        hash_names: whether it must not show what the command was given, as a path may name a patient.
    """
    report = Report("Evaluation", lead=lead, hide_values=hash_names)
    section = report.section("Result")
    section.table(summary[0], summary[1:])
    if explanation:
        section.paragraph(explanation)
    if notes:
        report.section("To be noted").bullets(notes)
    if count:
        report.section("Viewer").viewer(cases, classes=classes or {}, count=count)
    pictures = sorted(output.panels.glob("*.png"))
    if pictures:
        section = report.section("Pictures")
        for picture in pictures:
            section.picture(picture, caption=(captions or {}).get(picture.stem, ""))
    rows = read_table(output.cases)
    section = report.section("Cases")
    if rows:
        section.table(list(rows[0]), [_shown(row) for row in rows], file=output.cases.name)
    report.section("Settings", folded=True).facts({name: _text(value) for name, value in settings.items()})
    return report.write(output.report)


def _shown(row: Mapping[str, str]) -> list[object]:
    return [_number(cell) for cell in row.values()]


def _number(cell: str) -> object:
    """A cell of a table with four digits where it is a number with a fraction."""
    try:
        value = float(cell)
    except ValueError:
        return cell
    return f"{value:.4g}" if "." in cell else cell


def _text(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key}: {inner}" for key, inner in value.items())
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
