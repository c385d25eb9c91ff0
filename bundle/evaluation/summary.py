# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""Means and intervals as a table of text."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from bundle.data.names import name_digest
from bundle.evaluation.intervals import Estimate

__all__ = ["estimate_text", "shortened_list", "summary_rows", "summary_table", "unmatched_notes"]


def estimate_text(estimate: Estimate) -> str:
    """A mean and its interval, such as "0.873 (0.861 to 0.884)" or "13.95 (11.10 to 16.59)"; "-" where none is."""
    if not math.isfinite(estimate.mean):
        return "-"
    values = [value for value in (estimate.mean, estimate.low, estimate.high) if math.isfinite(value)]
    largest = max(map(abs, values))
    digits = 3 if largest <= 1 else 2 if largest < 100 else 1
    mean, *ends = [f"{value:.{digits}f}" for value in values]
    interval = f" ({' to '.join(ends)})" if len(ends) == 2 else ""
    return f"{mean}{interval}{f', {estimate.infinite} infinite' if estimate.infinite else ''}"


def summary_rows(
    metrics: Mapping[str, Mapping[str, Estimate]], labels: Mapping[str, str], first: str = "class"
) -> list[list[str]]:
    """A heading and a row for each class, with the number of cases at the end.

    Args:
        metrics: by name and class.
        labels: what to call each metric that is shown, by name.
        first: heading of the first column.
    """
    classes = list(dict.fromkeys(name for metric in labels for name in metrics.get(metric, {})))
    rows = [[first, *labels.values(), "n"]]
    for name in classes:
        shown = [metrics.get(metric, {}).get(name) for metric in labels]
        counts = [estimate.n for estimate in shown if estimate is not None]
        texts = ["" if estimate is None else estimate_text(estimate) for estimate in shown]
        rows.append([name, *texts, str(max(counts, default=0))])
    return rows


def summary_table(rows: Sequence[Sequence[str]]) -> str:
    """Rows, the heading first, as a table in Markdown with straight columns."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [f"| {' | '.join(cell.ljust(width) for cell, width in zip(row, widths))} |" for row in rows]
    rule = f"|{'|'.join('-' * (width + 2) for width in widths)}|"
    return "\n".join([lines[0], rule, *lines[1:]])


def shortened_list(names: Sequence[str], longest: int = 5) -> str:
    """The first names, and how many more there are."""
    more = f" and {len(names) - longest} more" if len(names) > longest else ""
    return f"{', '.join(names[:longest])}{more}"


def unmatched_notes(
    missing: Sequence[str],
    total: int,
    unused: Sequence[str],
    counted: str = "count in no mean",
    *,
    hashed: bool = False,
) -> list[str]:
    """A line each on scans without a prediction and on predictions without a scan, where there are some.

    Args:
        missing: names of scans.
        total: number of scans.
        unused: names of predictions.
        counted: what becomes of the scans.
        hashed: whether the names of predictions are not to be told.
    """
    notes = []
    if missing:
        notes.append(f"{len(missing)} of {total} scans have no prediction and {counted}: {shortened_list(missing)}")
    if unused:
        named = [name_digest(name) for name in unused] if hashed else unused
        notes.append(f"{len(unused)} predictions belong to no labelled scan: {shortened_list(named)}")
    return notes
