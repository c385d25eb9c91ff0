# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""The table of what inference did with each volume."""

from __future__ import annotations

import csv
import json
import logging
import time
from collections.abc import Mapping, Sequence
from typing import Any

from ignite.engine import Engine, Events

from bundle.atomic import replace_file, writing_into
from bundle.data import table_row
from bundle.errors import UserError
from bundle.inference.grid import own_grid
from bundle.inference.output import OutputFolder

__all__ = ["Manifest"]

logger = logging.getLogger(__name__)

COLUMNS = ("volume", "file", "feature_map", "modality", "shape", "spacing", "cells", "seconds", "skipped")


class Manifest:
    """Writes a row of `manifest.csv` for each volume as soon as it is done, and `about.json` at the start.

    Columns: volume, file and feature_map (below the output folder), modality, shape and spacing (mm) of the file's own
    axes, cells (of the body), seconds, and for a volume that cannot be used, the reason in the column `skipped`.

    Args:
        output: the folder.
        about: which weights and settings the results come from.
    """

    def __init__(self, output: OutputFolder, about: Mapping[str, Any]) -> None:
        self.output, self.about = output, about
        self.embedded = self.skipped = 0
        self._start = 0.0

    def attach(self, engine: Engine) -> None:
        """Registers with an evaluator that decollates."""
        engine.add_event_handler(Events.STARTED, self._begin)
        engine.add_event_handler(Events.ITERATION_STARTED, self._time)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._add)
        engine.add_event_handler(Events.COMPLETED, self._finish)

    def _begin(self, engine: Engine) -> None:  # noqa: ARG002 - the signature of a handler
        self.embedded = self.skipped = 0
        with replace_file(self.output.about) as temporary:
            temporary.write_text(json.dumps(dict(self.about), indent=4, default=str) + "\n")
        with replace_file(self.output.manifest) as temporary:
            _write(temporary, COLUMNS)

    def _time(self, engine: Engine) -> None:  # noqa: ARG002
        self._start = time.perf_counter()

    def _add(self, engine: Engine) -> None:
        batch = engine.state.batch
        if isinstance(batch, Mapping):  # not decollated: a volume that was not used
            name, problem, remedy = (batch[key][0] for key in ("name", "problem", "remedy"))
            logger.warning("skipped %s: %s; %s", name, problem, remedy)
            self.skipped += 1
            _write(self.output.manifest, _row({"volume": name, "skipped": problem}))
            return
        for item, result in zip(batch, engine.state.output, strict=True):
            self.embedded += 1
            grid = own_grid(item)
            row = {
                "volume": item["name"],
                "file": result["file"],
                "feature_map": result.get("feature_map", ""),
                "modality": item["modality"],
                "shape": " ".join(map(str, grid.shape)),
                "spacing": " ".join(f"{size:.6g}" for size in grid.spacing),
                "cells": result["cells"],
                "seconds": f"{float(item['seconds']) + time.perf_counter() - self._start:.2f}",
            }
            _write(self.output.manifest, _row(row))

    def _finish(self, engine: Engine) -> None:  # noqa: ARG002
        if not self.embedded:
            raise UserError(f"none of the {self.skipped} volumes can be used: {self.output.manifest} tells why")
        logger.info("%d volumes embedded, %d skipped: %s", self.embedded, self.skipped, self.output.manifest)


def _row(values: Mapping[str, Any]) -> Sequence[Any]:
    return [values.get(column, "") for column in COLUMNS]


def _write(path: Any, row: Sequence[Any]) -> None:
    """Appends a row: the table of a killed run tells what was done."""
    with writing_into(path.parent), path.open("a", newline="", encoding="utf-8") as file:
        csv.writer(file, lineterminator="\n").writerow(table_row(row))
