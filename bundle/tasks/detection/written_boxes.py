# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""Predicted boxes as they are written: boxes.json or boxes.csv."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bundle.errors import UserError
from bundle.evaluation import as_number, read_table
from bundle.tasks.detection.boxes import list_labels

__all__ = ["ScanBoxes", "read_boxes"]

#: of one scan: boxes [N, 6], centre and size in mm (RAS), classes [N] counted from 0, scores [N]; falling scores
ScanBoxes = tuple[np.ndarray, np.ndarray, np.ndarray]

#: names of the column, or of the key, of a scan
_SCANS = ("scan", "image", "volume", "case")
_NUMBERS = ("x", "y", "z", "width", "height", "depth")


def read_boxes(predictions: Path, classes: Mapping[str, int] | Sequence[str]) -> tuple[dict[str, ScanBoxes], list[str]]:
    """Reads the predicted boxes of each scan.

    Args:
        predictions: a `boxes.json` or `boxes.csv` as a training or `predict_detection` writes it, or their folder. In a
            csv a scan without boxes has no row: the `predictions.csv` beside it names those that were looked at.
        classes: as for `check_box_classes`. A boxes.json that says what its labels mean has its own.

    Returns:
        The boxes by the name of the scan without an ending, and names of classes that are not asked for.

    Raises:
        UserError: if there is no such file, or it cannot be used.
    """
    places = [predictions / name for name in ("boxes.json", "boxes.csv")] if predictions.is_dir() else [predictions]
    file = next((place for place in places if place.is_file()), None)
    if file is None:
        raise UserError(f"--predictions {predictions} has no boxes.json or boxes.csv: give one of them, or its folder")
    rows = _rows_of_json(file, classes) if file.suffix == ".json" else _rows_of_csv(file)
    names, unknown = list(classes), set()
    found: dict[str, list[tuple[float, int, list[float]]]] = {}
    for scan, name, score, box in rows:
        boxes = found.setdefault(scan, [])
        if name in names:
            boxes.append((score, names.index(name), box))
        elif name:
            unknown.add(name)
    return {scan: _sorted(boxes) for scan, boxes in found.items()}, sorted(unknown)


def _sorted(boxes: list[tuple[float, int, list[float]]]) -> ScanBoxes:
    boxes = sorted(boxes, key=lambda box: -box[0])
    placed = np.array([box for _, _, box in boxes], dtype=np.float64).reshape(-1, 6)
    labels, scores = np.array([n for _, n, _ in boxes], dtype=np.int64), np.array([s for s, _, _ in boxes])
    return placed, labels, scores.astype(np.float64)


def _rows_of_csv(file: Path) -> list[tuple[str, str, float, list[float]]]:
    rows = read_table(file, ("class", "score", *_NUMBERS))
    scans = next((column for column in _SCANS if rows and column in rows[0]), "")
    if rows and not scans:
        raise UserError(f"{file} has no column of scans: name it {', '.join(_SCANS[:-1])} or {_SCANS[-1]}")
    found = []
    for line, row in enumerate(rows, start=2):
        numbers = [as_number(row[column]) for column in ("score", *_NUMBERS)]
        where = f"{file}, line {line}"
        found.append((row[scans], _named(row["class"], where), *_checked(numbers, where)))
    beside = file.with_name("predictions.csv")
    looked_at = read_table(beside) if beside.is_file() else []
    scans = next((column for column in _SCANS if looked_at and column in looked_at[0]), "")
    return found + [(row[scans], "", 0.0, []) for row in looked_at if scans and not row.get("skipped")]


def _rows_of_json(file: Path, classes: Mapping[str, int] | Sequence[str]) -> list[tuple[str, str, float, list[float]]]:
    try:
        content: Any = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{file} is no readable json ({error}): give another --predictions") from error
    entries = content if isinstance(content, list) else [one for part in _lists(content) for one in part]
    own = content.get("classes") if isinstance(content, Mapping) else None
    names = own if isinstance(own, list | Mapping) and own else classes
    named = dict(zip(list_labels(names), names))
    found: list[tuple[str, str, float, list[float]]] = []
    for entry in entries:
        scan = next((str(entry[key]) for key in _SCANS if key in entry), "") if isinstance(entry, Mapping) else ""
        parts = [entry.get(key, []) for key in ("box", "label", "score")] if scan else []
        if not scan or not all(isinstance(part, list) and len(part) == len(parts[0]) for part in parts):
            raise UserError(f"{file} lists no scan with as many box, label and score: give the file of a prediction")
        found.append((scan, "", 0.0, []))
        for box, label, score in zip(*parts):
            name = named.get(label, str(label)) if isinstance(label, int) else label
            numbers = [score, *box] if isinstance(box, list) else []
            where = f"{file}, {scan}"
            found.append((scan, _named(name, where), *_checked(numbers, where)))
    return found


def _lists(content: object) -> list[list[Any]]:
    """The lists of scans of a json: those that hold objects."""
    values = content.values() if isinstance(content, Mapping) else ()
    return [value for value in values if isinstance(value, list) and all(isinstance(one, Mapping) for one in value)]


def _named(name: object, where: str) -> str:
    """The name of a box's class."""
    if not isinstance(name, str) or not name.strip():
        raise UserError(f"{where}: a box has no class: give each its name")
    return name


def _checked(numbers: Sequence[Any], where: str) -> tuple[float, list[float]]:
    """A score, and a box of finite numbers with a size."""
    known = [float(n) for n in numbers if isinstance(n, int | float) and not isinstance(n, bool) and math.isfinite(n)]
    if len(known) != 7 or len(numbers) != 7 or min(known[4:]) <= 0:
        raise UserError(f"{where}: no score and box in mm: give x, y, z, width, height and depth, sizes above 0")
    return known[0], known[1:]
