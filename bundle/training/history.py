# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""Every epoch's metrics in one table, which survives a resume, and as curves."""

from __future__ import annotations

import csv
import logging
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from ignite.engine import Engine, Events

from bundle.atomic import replace_file
from bundle.data import VolumeSet
from bundle.errors import UserError
from bundle.figures.curves import draw_curves
from bundle.runs import RunFolder
from bundle.runs.distributed import is_main_rank
from bundle.training.partial_epoch import gathers

__all__ = ["History", "class_metrics", "clock", "on_training", "read_history"]

logger = logging.getLogger(__name__)

#: pre-training's learning curves, beside what predicts without having learned
_CURVES = {
    "hidden voxels whose class is named": {
        "train/pretext_accuracy_hidden": "training",
        "validation/pretext_accuracy_hidden": "validation",
        "validation/pretext_accuracy_guess": "validation: the most frequent class",
    },
    "reconstruction loss of hidden voxels": {
        "train/reconstruction": "training",
        "validation/reconstruction": "validation",
        "validation/zero_predictor": "validation: predict 0",
        "validation/mean_predictor": "validation: predict the mean of the visible voxels",
    },
}


#: so many classes have a curve
_CLASSES = 8


class History:
    """Keeps `metrics.csv`, with one row per epoch and one column per metric, draws `curves.png`, and logs a line.

    Put it after validation and before the checkpoint: an epoch whose checkpoint was never finished is trained again
    after a resume, and its row is written anew. Under several processes only the main one acts.

    Args:
        run_folder: where to.
        validator: the engine that validates; epochs in which it did not run have empty cells.
        shown: the metrics of the log line, such as "train/reconstruction".
        curves: what to draw: for each picture, by the label of its y axis, metrics and what to call them; None draws
            pre-training's. A picture without any metric is left out. A metric that `PerClass` has split has a curve for
            each class as well, of more than eight for the lowest ones.
        volumes: where none of them are held out, no label speaks of validation.

    Attributes:
        rows: metrics of each epoch by name; "epoch" counts from 1 and "seconds" is the time that the epoch took,
            validation included.
    """

    def __init__(
        self,
        *,
        run_folder: RunFolder,
        validator: Engine | None = None,
        shown: Sequence[str] = (),
        curves: Mapping[str, Mapping[str, str]] | None = None,
        volumes: VolumeSet | None = None,
    ) -> None:
        self.path, self.picture, self.validator = run_folder.history, run_folder.curves, validator
        self.shown, self.curves = tuple(shown), curves or _CURVES
        if volumes is not None and not volumes.held_out:
            self.curves = {
                on_training(label): {name: on_training(called) for name, called in lines.items()}
                for label, lines in self.curves.items()
            }
        self.rows: list[dict[str, float]] = read_history(self.path) if run_folder.resumed else []
        self._start = self._before = 0.0

    def attach(self, engine: Engine) -> None:
        """Registers at the start and the end of each epoch of the trainer."""
        if not is_main_rank():
            return
        engine.add_event_handler(Events.EPOCH_STARTED, self._start_epoch)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._finish_epoch)
        gathers(engine, "history", self)

    def so_far(self) -> dict[str, float]:
        """The time that the epoch has taken so far, for a checkpoint."""
        return {"seconds": time.perf_counter() - self._start}

    def take_up(self, states: Sequence[Mapping[str, float]]) -> None:
        """The next epoch has taken this time already."""
        self._before = max((state["seconds"] for state in states), default=0.0)

    def _start_epoch(self, engine: Engine) -> None:  # noqa: ARG002 - the signature of a handler
        self._start, self._before = time.perf_counter() - self._before, 0.0

    def _finish_epoch(self, engine: Engine) -> None:
        epoch, last_epoch = engine.state.epoch, engine.state.max_epochs
        row = {"epoch": epoch, "seconds": time.perf_counter() - self._start, **engine.state.metrics}
        if self.validator is not None and self.validator.state.epoch == epoch:
            row.update(self.validator.state.metrics)
        self.rows = [earlier for earlier in self.rows if earlier["epoch"] < epoch] + [row]
        _write(self.path, self.rows)
        found = {name for row in self.rows for name in row}
        curves = {label: self._with_classes(lines) for label, lines in self.curves.items() if found & set(lines)}
        with replace_file(self.picture) as temporary:
            draw_curves(self.rows, curves or self.curves).savefig(temporary, format="png")
        shown = [f"{name} {row[name]:.4g}" for name in self.shown if name in row]
        remaining = (last_epoch - epoch) * row["seconds"]
        shown += [f"took {clock(row['seconds'])}", f"{clock(remaining)} to go"]
        logger.info("epoch %d/%d: %s", epoch, last_epoch, ", ".join(shown))

    def _with_classes(self, lines: Mapping[str, str]) -> dict[str, str]:
        """The metrics of a picture, each followed by those of its classes; of one class alone that one."""
        found: dict[str, str] = {}
        for metric, label in lines.items():
            split = [row for row in self.rows if class_metrics(row, metric)][-1:]
            classes = {name: called for row in split for name, called in class_metrics(row, metric, _CLASSES).items()}
            found |= classes if len(classes) == 1 else {metric: label, **classes}
        return found


def class_metrics(row: Mapping[str, float], metric: str, most: int | None = None) -> dict[str, str]:
    """The metrics of an epoch into which `PerClass` has split one, with the names of the classes.

    Args:
        row: of the history.
        metric: the one that was split.
        most: of more classes than this the lowest ones are given; None gives all.
    """
    names = [name for name in row if name.startswith(f"{metric}/")]
    if most is not None and len(names) > most:
        lowest = set(sorted(names, key=lambda name: row[name])[:most])
        names = [name for name in names if name in lowest]
    return {name: name.removeprefix(f"{metric}/") for name in names}


def clock(seconds: float) -> str:
    """A time in seconds as "1:02:03"."""
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{seconds:02d}"


def on_training(label: str) -> str:
    """What to call a figure of the validation where its volumes are those that were trained on."""
    if label == "validation":
        return "training volumes"
    return (
        label.replace("validation volumes", "training volumes")
        .replace("validation: ", "training volumes: ")
        .replace("validation reconstruction loss", "reconstruction loss of the training volumes")
    )


def read_history(path: Path) -> list[dict[str, float]]:
    """The rows of a `metrics.csv`, none if there is no such file; a metric that an epoch lacks is left out.

    Raises:
        UserError: if the file is damaged.
    """
    if not path.exists():
        return []
    try:
        with path.open(newline="") as file:
            rows = [{name: _number(cell) for name, cell in row.items() if cell} for row in csv.DictReader(file)]
        if all("epoch" in row for row in rows):
            return rows
        problem = "a row without an epoch"
    except (ValueError, TypeError, csv.Error) as error:
        problem = str(error).splitlines()[0]
    raise UserError(f"{path} is damaged ({problem}): correct it, or move it away to go on without the earlier epochs")


def _number(cell: str) -> float:
    """Whole numbers stay whole, so that a table is written back as it was read."""
    return int(cell) if str(cell).isdecimal() else float(cell)


def _write(path: Path, rows: list[dict[str, float]]) -> None:
    columns = list(dict.fromkeys(name for row in rows for name in row))
    with replace_file(path) as temporary, temporary.open("w", newline="") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(rows)
