# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""The tables of what was predicted, and the record of each scan."""

from __future__ import annotations

import csv
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Engine, Events

from bundle.atomic import replace_file, writing_into
from bundle.data import FoundVolume, table_row
from bundle.errors import UserError
from bundle.inference.grid import own_grid
from bundle.prediction.folder import PredictionFolder

__all__ = ["PredictionTables"]

logger = logging.getLogger(__name__)

#: of records by name, and of what is wrong and what to do by name
Report = Callable[[Mapping[str, Mapping[str, Any]], Mapping[str, tuple[str, str]]], Path | None]

_FIRST = ("scan", "files")
#: voxels of which size are like those trained on
_LIKE = 1.5
_LAST = ("modality", "shape", "spacing", "seconds", "notes", "skipped")


class PredictionTables:
    """Writes `predictions.csv` with a row for each scan, further tables, and what makes a run go on after a kill.

    A row holds the scan's name, the files that were written (below the folder, separated by "; "), modality, shape and
    spacing (mm) of the scan's own grid, the seconds that it took, notes, such as slices that were left out, and for a
    scan that was skipped the reason. The tables hold the scans of earlier runs into the same folder, too, and each scan
    once.

    What a transform of the postprocessing puts into an item comes into the tables:

    - `files`: a list of paths below the folder;
    - `row`: cells of `columns` in `predictions.csv`;
    - `tables`: by the name of a further table a list of its rows, each a mapping, with the scan's name added in front.

    Args:
        output: the folder.
        scans: all scans, those that are done included.
        columns: further columns of `predictions.csv`.
        tables: columns of each further table by its name, such as {"measurements": ["class", "ml"]}.
        where: what the last line of the log points at besides the table.
        modalities: that the model was trained on; a scan of another one gets a note. Empty: not known.
        voxel_mm: the smallest and the largest voxel that it was trained on, mm on each prepared axis; a scan whose
            prepared voxels are less than two thirds of one, or more than one and a half of the other, gets a note.
            None: not known.
        report: writes a page of the records and of what was skipped, and returns its path.
    """

    def __init__(
        self,
        output: PredictionFolder,
        *,
        scans: Sequence[FoundVolume],
        columns: Sequence[str] = (),
        tables: Mapping[str, Sequence[str]] | None = None,
        where: str = "",
        modalities: Sequence[str] = (),
        voxel_mm: tuple[Sequence[float], Sequence[float]] | None = None,
        report: Report | None = None,
    ) -> None:
        self.output, self.scans, self.where = output, {scan.name: scan for scan in scans}, where
        self.report, self.modalities, self.voxel_mm = report, tuple(modalities), voxel_mm
        self._strange = 0
        self.columns = (*_FIRST, *columns, *_LAST)
        self.tables = {name: ("scan", *rest) for name, rest in (tables or {}).items()}
        self._records: dict[str, dict[str, Any]] = {}
        self._skipped: dict[str, tuple[str, str]] = {}
        self._before = 0
        self._start = 0.0

    def attach(self, engine: Engine) -> None:
        """Registers with an evaluator that decollates."""
        engine.add_event_handler(Events.STARTED, self._begin)
        engine.add_event_handler(Events.ITERATION_STARTED, self._time)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._add)
        engine.add_event_handler(Events.COMPLETED, self._finish)

    def _begin(self, engine: Engine) -> None:  # noqa: ARG002 - the signature of a handler
        self.output.begin()
        self._records, self._skipped = self.output.records(), {}
        self._before = sum(name in self._records for name in self.scans)
        if self._before:
            logger.info("%d of %d scans are done already", self._before, len(self.scans))
        if others := sorted(self._records.keys() - set(self.scans)):
            told = "%d scan(s) of an earlier run are not among these, such as %s: their rows stay in the tables"
            logger.warning(told, len(others), others[0])
        self._write_all()

    def _time(self, engine: Engine) -> None:  # noqa: ARG002
        self._start = time.perf_counter()

    def _add(self, engine: Engine) -> None:
        batch = engine.state.batch
        if isinstance(batch, Mapping):  # not decollated: a scan that was not used
            name, problem, remedy = (batch[key][0] for key in ("name", "problem", "remedy"))
            logger.warning("skipped %s: %s; %s", name, problem, remedy)
            self._skipped[name] = problem, remedy
            self._append(self.output.table, self.columns, [_skipped_row(name, problem)])
            return
        for item, result in zip(batch, engine.state.output, strict=True):
            name, grid = item["name"], own_grid(item)
            record = {
                "files": list(result.get("files", [])),
                "row": {
                    **result.get("row", {}),
                    "modality": item["modality"],
                    "shape": " ".join(map(str, grid.shape)),
                    "spacing": " ".join(f"{size:.6g}" for size in grid.spacing),
                    "seconds": f"{float(item['seconds']) + time.perf_counter() - self._start:.2f}",
                    "notes": _notes(item, result, self._strange_notes(item)),
                },
                "tables": {name: result.get("tables", {}).get(name, []) for name in self.tables},
            }
            self.output.done(self.scans[name], record)
            self._records[name] = record
            self._append(self.output.table, self.columns, [_row(name, record)])
            for table, columns in self.tables.items():
                self._append(self._file(table), columns, _table_rows(name, record, table))

    def _finish(self, engine: Engine) -> None:  # noqa: ARG002
        self._write_all()
        done = sum(name in self._records for name in self.scans)
        if not done:
            first = next(iter(self._skipped), "")
            problem, remedy = self._skipped.get(first, ("", "see the log"))
            raise UserError(
                f"none of the {len(self.scans)} scans can be predicted, {self.output.table} tells why; the first: "
                f"{first} {problem}; {remedy}"
            )
        if self._skipped:
            lines = "\n".join(f"- {name}: {problem}; {remedy}" for name, (problem, remedy) in self._skipped.items())
            logger.warning("%d of %d scans were skipped:\n%s", len(self._skipped), len(self.scans), lines)
        if self._strange:
            logger.warning(
                "%d scans are of a modality or a voxel size that the model was not trained on: see their notes",
                self._strange,
            )
        page = self.report(self._records, self._skipped) if self.report is not None else None
        earlier = f" ({self._before} of them before)" if self._before else ""
        folder = [self.output.path / self.where] if self.where else []
        places = ", ".join(map(str, [*([page] if page else []), self.output.table, *folder]))
        logger.info("%d scans predicted%s, %d skipped: see %s", done, earlier, len(self._skipped), places)

    def _strange_notes(self, item: Mapping[str, Any]) -> list[str]:
        notes, modality = [], item["modality"]
        if self.modalities and modality not in self.modalities:
            notes.append(f"is {modality}, and the model was trained on {' and '.join(self.modalities)} alone")
        if self.voxel_mm is not None:
            sizes = torch.linalg.vector_norm(item["affine"][:3, :3], dim=0).tolist()
            if any(size < low / _LIKE or size > high * _LIKE for size, low, high in zip(sizes, *self.voxel_mm)):
                low, high = (_in_mm(end) for end in self.voxel_mm)
                trained = low if low == high else f"{low} to {high}"
                notes.append(f"has voxels of {_in_mm(sizes)} mm, and the model was trained on {trained}")
        self._strange += bool(notes)
        return notes

    def _file(self, table: str) -> Path:
        return self.output.path / f"{table}.csv"

    def _write_all(self) -> None:
        """Writes the tables anew from the records, in the order of the names."""
        rows = {name: _row(name, record) for name, record in self._records.items()}
        rows |= {name: _skipped_row(name, problem) for name, (problem, _) in self._skipped.items()}
        _write(self.output.table, self.columns, [rows[name] for name in sorted(rows)])
        for table, columns in self.tables.items():
            more = [row for name in sorted(self._records) for row in _table_rows(name, self._records[name], table)]
            _write(self._file(table), columns, more)

    def _append(self, file: Path, columns: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> None:
        with writing_into(file.parent), file.open("a", newline="", encoding="utf-8") as opened:
            csv.writer(opened, lineterminator="\n").writerows(_cells(columns, row) for row in rows)


def _notes(item: Mapping[str, Any], result: Mapping[str, Any], strange: Sequence[str]) -> str:
    """What the reader noted of the scan, what a transform has, and what is strange to the model."""
    return "; ".join(note for note in (item.get("notes"), result.get("row", {}).get("notes"), *strange) if note)


def _in_mm(sizes: Sequence[float]) -> str:
    return " x ".join(f"{size:.3g}" for size in sizes)


def _write(file: Path, columns: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> None:
    with replace_file(file) as temporary, temporary.open("w", newline="", encoding="utf-8") as opened:
        csv.writer(opened, lineterminator="\n").writerows([table_row(columns), *(_cells(columns, row) for row in rows)])


def _cells(columns: Sequence[str], row: Mapping[str, Any]) -> list[Any]:
    return table_row([row.get(column, "") for column in columns])


def _row(name: str, record: Mapping[str, Any]) -> dict[str, Any]:
    return {**record.get("row", {}), "scan": name, "files": "; ".join(record["files"])}


def _skipped_row(name: str, problem: str) -> dict[str, Any]:
    return {"scan": name, "skipped": problem}


def _table_rows(name: str, record: Mapping[str, Any], table: str) -> list[dict[str, Any]]:
    return [{**row, "scan": name} for row in record.get("tables", {}).get(table, [])]
