# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""Reads and writes what an evaluation leaves: `cases.csv` and `results.json`."""

from __future__ import annotations

import csv
import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

from bundle.atomic import replace_file
from bundle.data import table_row
from bundle.data.safe_names import cell_text
from bundle.errors import UserError
from bundle.evaluation.intervals import Estimate

__all__ = ["as_number", "read_results", "read_table", "table_reader", "write_results", "write_table"]


def write_table(path: str | os.PathLike[str], columns: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> None:
    """Writes a table, whole or not at all. A number that is not known is an empty cell, an infinite one `inf`.

    Args:
        path: of the csv.
        columns: their names, in order.
        rows: values by column; one that is missing is empty.
    """
    with replace_file(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(table_row(columns))
        writer.writerows(table_row([_cell(row.get(column)) for column in columns]) for row in rows)


def table_reader(file: TextIO) -> csv.DictReader[str]:
    """A reader of a table's rows by column, separated by commas, or by semicolons or tabs if the header has no comma.

    A first line such as `sep=;`, which spreadsheets write, is left out.

    Args:
        file: open at its start, with `newline=""`.

    Raises:
        UnicodeDecodeError, csv.Error: as the file has it.
    """
    header, start = file.readline(), 0
    if header.lower().startswith("sep="):
        start = file.tell()
        header = file.readline()
    file.seek(start)
    # where the comma is a decimal one, spreadsheets separate by semicolons
    others = [mark for mark in (";", "\t") if mark in header and "," not in header]
    # a row that is too short has None for a cell, one too long None as a key
    return csv.DictReader(file, delimiter=others[0] if others else ",")


def read_table(path: str | os.PathLike[str], columns: Sequence[str] = ()) -> list[dict[str, str]]:
    """Reads a table, such as `cases.csv`: for each row its cells by column.

    Args:
        path: of the csv.
        columns: that it must have.

    Raises:
        UserError: if it cannot be read, or lacks a column.
    """
    try:
        with Path(path).open(newline="", encoding="utf-8-sig") as file:
            reader = table_reader(file)
            rows = [
                {cell_text(k).strip(): cell_text(v or "") for k, v in row.items() if k is not None} for row in reader
            ]
            found = [cell_text(name).strip() for name in reader.fieldnames or ()]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path} is no readable table ({error}): give one in CSV and UTF-8") from error
    if missing := [column for column in columns if column not in found]:
        raise UserError(f"{path} has no column {', '.join(missing)}: its columns are {', '.join(found) or 'none'}")
    return rows


def as_number(cell: str) -> float:
    """A cell as a number; NaN for one that is empty or no number."""
    try:
        return float(cell)
    except ValueError:
        return math.nan


def write_results(
    path: str | os.PathLike[str],
    *,
    task: str,
    metrics: Mapping[str, Mapping[str, Estimate]],
    higher_is_better: Mapping[str, bool | None],
    settings: Mapping[str, Any],
    notes: Sequence[str] = (),
) -> None:
    """Writes `results.json`, whole or not at all.

    Args:
        path: of the file.
        task: "segmentation", "classification" or "detection".
        metrics: by name and class; "mean" is the mean over the classes.
        higher_is_better: for each metric; None where neither is, as for a signed error.
        settings: what was evaluated, and how.
        notes: what a reader must know.
    """
    content = {
        "task": task,
        "metrics": {
            metric: {name: estimate.to_json() for name, estimate in classes.items()}
            for metric, classes in metrics.items()
        },
        "higher_is_better": dict(higher_is_better),
        "settings": dict(settings),
        "notes": list(notes),
    }
    with replace_file(path) as temporary:
        temporary.write_text(json.dumps(content, indent=1, default=str, ensure_ascii=False) + "\n", encoding="utf-8")


def read_results(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Reads `results.json`.

    Raises:
        UserError: if it is missing or damaged.
    """
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is no readable result ({error}): give the folder of an evaluation") from error
    if not isinstance(content, dict) or not isinstance(content.get("metrics"), dict):
        raise UserError(f"{path} holds no metrics: give the folder of an evaluation")
    return content


def _cell(value: Any) -> Any:
    if isinstance(value, float):
        return "" if math.isnan(value) else f"{value:.9g}"
    return "" if value is None else value
