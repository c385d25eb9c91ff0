# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""A run's facts, curves and pictures as one page, `report.html`."""

from __future__ import annotations

import re
from pathlib import Path

from bundle.errors import UserError
from bundle.reports import Report, Section
from bundle.runs import RunFolder
from bundle.training.run_facts import RunFacts

__all__ = ["write_run_report"]

_EARLIER = 4  # pictures of earlier epochs


def write_run_report(folder: RunFolder, facts: RunFacts, *, hash_names: bool = False) -> None:
    """Writes the page.

    Args:
        folder: of the run.
        facts: what the page says.
        hash_names: whether it must not show what the command was given, as a path may name a patient.
    """
    report = Report(facts.title, lead=facts.outcome, hide_values=hash_names)
    if facts.metrics is not None:
        section = report.section(f"Metrics of epoch {facts.metrics.epoch}")
        if facts.metrics.note:
            section.paragraph(facts.metrics.note)
        section.facts(facts.metrics.values)
    if folder.curves.is_file():
        _picture(report.section("Learning curves"), folder.curves)
    _panels(report, folder, facts)
    if folder.labels.is_file():
        _picture(report.section("The labels that were trained on", folded=True), folder.labels)
    report.section("What was trained").facts(facts.trained)
    data = report.section("On what").facts(facts.data)
    if any(facts.names.values()):
        data.table(["part", "volumes"], [fact for fact in facts.names.items() if fact[1]])
    if facts.notes:
        data.table(["volume", "used in part or resampled"], facts.notes)
    if facts.skipped:
        skipped = report.section(f"Not used: {len(facts.skipped)}")
        skipped.table(["volume", "problem", "what to do"], facts.skipped)
    _epochs(report, folder, facts)
    files = {str(path.relative_to(folder.path)): what for path, what in facts.files.items()}
    report.section("Where it is").facts(files).bullets(facts.hints)
    report.write(folder.report)


def _panels(report: Report, folder: RunFolder, facts: RunFacts) -> None:
    """The picture of the epoch whose metrics are shown, else the last one; the earlier ones folded."""
    found = {int(match[1]): file for file in folder.panels.glob("*.png") if (match := _number(file))}
    if not found:
        return
    epochs = sorted(found)
    shown = facts.metrics.epoch if facts.metrics is not None and facts.metrics.epoch in found else epochs[-1]
    _picture(report.section("What the network predicts"), found[shown], f"Epoch {shown}, validation")
    others = [epoch for epoch in epochs if epoch != shown]
    if others:
        step = max(1, (len(others) - 1) // (_EARLIER - 1))
        section = report.section("The same in other epochs", folded=True)
        for epoch in others[::step][:_EARLIER]:
            _picture(section, found[epoch], f"Epoch {epoch}")


def _number(file: Path) -> re.Match[str] | None:
    return re.fullmatch(r"epoch_(\d+)\.png", file.name)


def _picture(section: Section, file: Path, caption: str = "") -> None:
    try:
        section.picture(file, caption=caption, alt=caption or section.title)
    except UserError as error:  # a damaged picture is no reason to lose the page
        section.paragraph(str(error))


def _epochs(report: Report, folder: RunFolder, facts: RunFacts) -> None:
    if facts.rows:
        columns = list(dict.fromkeys(name for row in facts.rows for name in row))
        rows = [[row.get(name) for name in columns] for row in facts.rows]
        report.section("Every epoch", folded=True).table(columns, rows, file=folder.history.name)
