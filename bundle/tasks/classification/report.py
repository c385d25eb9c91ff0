# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""What a classifier says of each validation volume: a table, and ROC curves."""

from __future__ import annotations

import csv
import math
import shutil
from collections.abc import Sequence
from pathlib import Path

import torch
from ignite.engine import Engine, Events
from matplotlib.image import imsave
from monai.utils.enums import CommonKeys
from torch import Tensor

from bundle.atomic import replace_file
from bundle.data import PreparedVolume, table_row
from bundle.figures.roc import draw_roc
from bundle.runs import RunFolder
from bundle.runs.checkpoint import read_checkpoint
from bundle.runs.distributed import gather, is_main_rank
from bundle.tasks.classification.metrics import roc_auc

__all__ = ["FindingsReport"]


class FindingsReport:
    """Writes `predictions/epoch_0003.csv` and `panels/epoch_0003.png` after each validation.

    When training ends, the table of the best epoch, whose weights are `model.pt`, becomes `predictions.csv`. A row is
    a volume: its name, the probability of each finding, and what is known of it, as "<finding> label": 1, 0 or empty.

    Args:
        run_folder: where to.
        validator: the engine that validates, whose output holds `pred`, logits, and `label`.
        findings: their names, in the order of the logits.
        volumes: that are validated.
    """

    def __init__(
        self, *, run_folder: RunFolder, validator: Engine, findings: Sequence[str], volumes: Sequence[PreparedVolume]
    ) -> None:
        self.run_folder, self.validator, self.findings = run_folder, validator, tuple(findings)
        self.names = [volume.name for volume in volumes]
        self._rows: dict[int, tuple[Tensor, Tensor]] = {}  # logits and labels by the number of the volume

    def attach(self, engine: Engine) -> None:
        """Registers with the validator, and at the end of the trainer; all processes need it."""
        self.validator.add_event_handler(Events.EPOCH_STARTED, self._forget)
        self.validator.add_event_handler(Events.ITERATION_COMPLETED, self._collect)
        self.validator.add_event_handler(Events.EPOCH_COMPLETED, self._write)
        if self.run_folder.resumed:
            engine.add_event_handler(Events.STARTED, self._make_good)
        engine.add_event_handler(Events.COMPLETED, self._keep_best)

    def _forget(self, engine: Engine) -> None:  # noqa: ARG002 - the signature of a handler
        self._rows = {}

    def _collect(self, engine: Engine) -> None:
        for item, batch in zip(engine.state.output, engine.state.batch, strict=True):
            logits, labels = (item[key].float().cpu() for key in (CommonKeys.PRED, CommonKeys.LABEL))
            self._rows[int(batch["volume"])] = logits, labels

    def _write(self, engine: Engine) -> None:
        rows: dict[int, tuple[Tensor, Tensor]] = {}
        for part in gather(self._rows):
            rows.update(part)
        if not is_main_rank() or not rows:
            return
        epoch = engine.state.epoch
        with replace_file(self._table(epoch)) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(table_row(["volume", *self.findings, *(f"{finding} label" for finding in self.findings)]))
            for number, (logits, labels) in sorted(rows.items()):
                cells = ["" if math.isnan(label) else f"{label:.0f}" for label in labels.tolist()]
                probabilities = logits.double().sigmoid().tolist()
                writer.writerow(table_row([self.names[number], *(f"{p:.9g}" for p in probabilities), *cells]))
        scores, known = (torch.stack(column) for column in zip(*rows.values()))
        pixels = draw_roc(
            scores, known, roc_auc(scores, known).tolist(), findings=self.findings, title=f"epoch {epoch}"
        )
        with self.run_folder.new_panel(epoch) as temporary:
            imsave(temporary, pixels)

    def _make_good(self, engine: Engine) -> None:
        """Writes what a kill after the last epoch has prevented. `RunCheckpoint`, before this, tells that it was."""
        if engine.should_terminate:
            self._keep_best(engine)

    def _keep_best(self, engine: Engine) -> None:  # noqa: ARG002 - as above
        best = self.run_folder.best_checkpoint
        if not is_main_rank() or not best.exists():
            return
        table = self._table(read_checkpoint(best)["epoch"])
        if table.exists():
            with replace_file(self.run_folder.path / "predictions.csv") as temporary:
                shutil.copyfile(table, temporary)

    def _table(self, epoch: int) -> Path:
        return self.run_folder.path / "predictions" / f"epoch_{epoch:04d}.csv"
