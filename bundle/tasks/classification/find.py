# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""Finds volumes with findings."""

from __future__ import annotations

import csv
import os
import posixpath
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bundle.data.dataset_json import PARTS, choose_part, group_named, modality_named
from bundle.data.find import find_listed
from bundle.data.found_volume import FoundVolume
from bundle.errors import UserError
from bundle.evaluation.tables import table_reader

__all__ = ["check_findings", "find_findings"]


def check_findings(findings: Sequence[str]) -> int:
    """The number of findings, for a network's last layer.

    Raises:
        UserError: if there is none, one is named twice, or it is no list of names.
    """
    is_list = isinstance(findings, Sequence) and not isinstance(findings, str)
    names = [finding for finding in findings if isinstance(finding, str)] if is_list else []
    if not names or len(set(names)) < len(findings):
        raise UserError(
            f'--findings {findings} does not fit: list columns of labels.csv, such as "[aneurysm, stenosis]" or, with '
            "a space, \"['large aneurysm', stenosis]\""
        )
    return len(names)


def find_findings(dataset_dir: str | os.PathLike[str], findings: Sequence[str], part: str = "") -> list[FoundVolume]:
    """Volumes with a row of findings each, 1 or 0, for classification.

    Args:
        dataset_dir: a table `labels.csv`, separated by commas, semicolons or tabs, or the folder that holds it. Its
            column `image` names a file, or a folder of one DICOM series, relative to the table; each finding has a
            column; the optional column `part` says "training", "validation" or "test", the optional `group` which
            volumes belong together (one patient), and `modality` CT or MR. An empty cell of a finding means not known,
            and counts in neither loss nor metric.
        findings: the columns to learn.
        part: the rows to take; "all": every row; "": all but those of the test part, for a training; "auto": the test
            part if there is one, else all.

    Returns:
        Volumes whose annotations hold `label`, a list of 0.0, 1.0 or NaN, sorted by name.

    Raises:
        UserError: if there is no table, or it lacks a column, or a cell is neither 0, 1 nor empty.
    """
    check_findings(findings)
    root = Path(dataset_dir)
    table = root / "labels.csv" if root.is_dir() else root
    if not table.is_file() or table.suffix != ".csv":
        raise UserError(f"--dataset_dir {root} has no labels.csv: give a table with a column image and one per finding")
    rows = _read(table, {"image", *findings})
    volumes: list[FoundVolume] = []
    # without a row to validate on those to train on are split at random, as in a json
    has_parts = any(row.get("part") == "validation" for row in rows.values())
    part = choose_part(part, {"test": [row for row in rows.values() if row.get("part") == "test"]})
    for line, row in rows.items():
        own_part = row.get("part") or ("training" if has_parts else "")
        if own_part not in ("", *PARTS):
            raise UserError(f"{table}, line {line}: part {own_part!r} is no training, validation or test: correct it")
        if not _is_wanted(own_part, part):
            continue
        values = [_finding(row[name], f"{table}, line {line}, column {name}") for name in findings]
        volumes += find_listed(
            table.parent / row["image"],
            row["image"],
            modality=modality_named(row.get("modality")),
            part=own_part if has_parts or own_part == "test" else "",
            group=group_named(row.get("group")),
            annotations={"label": values},
        )
    if not volumes and part in PARTS:
        raise UserError(f"{table} has no row of the part {part!r}: name it in a column part, or give --part all")
    if not volumes:
        what = "other rows than of its test part" if rows else "rows"
        raise UserError(f"{table} has no {what}: add some, each with its image and findings")
    return sorted(volumes, key=lambda volume: volume.name)


def _read(table: Path, columns: set[str]) -> dict[int, dict[str, str]]:
    """The rows by their lines, each with its own image; blank ones, as spreadsheets write them, are left out."""
    try:
        with table.open(newline="", encoding="utf-8-sig") as file:
            reader = table_reader(file)
            named = [name.strip() for name in reader.fieldnames or ()]
            reader.fieldnames = named
            rows = [(reader.line_num, {k: _stripped(cell) for k, cell in row.items()}) for row in reader]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{table} is no readable table ({error}): save it as CSV in UTF-8") from error
    if twice := sorted({name for name in named if named.count(name) > 1 and name in columns}):
        raise UserError(f"{table} has two columns {', '.join(twice)}: remove one")
    if missing := columns - set(named):
        raise UserError(
            f"{table} has no column {', '.join(sorted(missing))}: its columns are {', '.join(named) or 'none'}; one "
            "must be `image`, and --findings names others as they are"
        )
    found: dict[int, dict[str, str]] = {}
    lines: dict[str, int] = {}
    for line, row in rows:
        if not any(row.values()):
            continue
        if None in row or None in row.values():
            raise UserError(f"{table}, line {line} has another number of cells than the header: correct it")
        if not row["image"]:
            raise UserError(f"{table}, line {line} names no image: give its path or remove the line")
        image = posixpath.normpath(row["image"])
        if image in lines:
            raise UserError(f"{table}, line {line} names {image} again, as line {lines[image]} does: remove one")
        lines[image] = line
        found[line] = row
    return found


def _stripped(cell: Any) -> Any:
    """A cell without the blanks around it; of a row that is too long the rest is a list."""
    return cell.strip() if isinstance(cell, str) else [one for one in cell or () if one.strip()] or None


def _is_wanted(own_part: str, part: str) -> bool:
    return own_part != "test" if part == "" else part in ("all", own_part or "training")


def _finding(cell: str, where: str) -> float:
    if cell == "":
        return float("nan")
    try:
        value = float(cell)
    except ValueError:
        value = -1.0
    if value not in (0.0, 1.0):
        raise UserError(f"{where} holds {cell!r}: give 1, 0, or nothing where it is not known")
    return value
