# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""One page at the end: what was trained, on what, how it went, and where everything is."""

from __future__ import annotations

import logging
import shlex
from collections.abc import Mapping, Sequence

from ignite.engine import Engine, Events
from torch import nn

from bundle.atomic import replace_file
from bundle.data import PreparedVolume, SkippedVolume
from bundle.errors import user_error_in
from bundle.runs import RunFolder
from bundle.runs.distributed import is_main_rank, unwrap
from bundle.training.history import read_history
from bundle.training.next_steps import next_steps
from bundle.training.run_facts import EpochMetrics, RunFacts, data_facts, files_facts, training_facts, volume_names
from bundle.training.run_report import write_run_report

__all__ = ["Summary"]

logger = logging.getLogger(__name__)

# metric of the history: (label, number format)
_METRICS = {
    "train/loss": ("training loss", ".4f"),
    "train/reconstruction": ("training reconstruction loss", ".4f"),
    "validation/reconstruction": ("validation reconstruction loss", ".4f"),
    "validation/zero_predictor": ("the same if 0 is predicted", ".4f"),
    "validation/mean_predictor": ("the same if the mean of the visible voxels is predicted", ".4f"),
    "validation/reconstruction_raw": ("validation reconstruction loss, raw intensities", ".4f"),
    "validation/zero_predictor_raw": ("the same if 0 is predicted, raw intensities", ".4f"),
    "validation/pretext_accuracy_hidden": ("validation: hidden voxels whose class is named", ".3f"),
    "validation/pretext_accuracy_guess": ("the same if the most frequent class is named", ".3f"),
    "train/mask_ratio": ("masked fraction of the cells", ".3f"),
    "train/volumes_per_second": ("crops per second", ".3g"),
    "train/voxels_per_second": ("voxels per second", ".3g"),
    "train/peak_memory_mib": ("peak memory, MiB", ".0f"),
}


class Summary:
    """Writes `summary.md` and `report.html`, and logs the first, when training completes, is interrupted or fails.

    A resume of a finished run writes them, too, if one is missing, older than the product, or of an earlier epoch. Put
    it after all other handlers. It raises again what it was called for. Under several processes only the main one
    writes.

    A metric that `PerClass` has split has a row for each class below it.

    Args:
        run_folder: where to, and where `History` keeps the metrics.
        network: the trainable whole.
        training: the training volumes, to be counted by modality.
        validation: likewise.
        skipped: the volumes that could not be used.
        title: of the page.
        metrics: of the last epoch to show, their names in the history and what to call them; None for pre-training's.
        best: a metric of which the highest tells the epoch whose weights are the product; that epoch is shown instead.
        further: what else the page says of the data, by name.
        remarks: the same, of what is odd about them.
        task: segmentation, classification or detection, for the commands that come next; None for pre-training.
        hash_names: as for `write_run_report`.
    """

    def __init__(
        self,
        *,
        run_folder: RunFolder,
        network: nn.Module,
        training: Sequence[PreparedVolume] = (),
        validation: Sequence[PreparedVolume] = (),
        skipped: Sequence[SkippedVolume] = (),
        title: str = "Pre-training summary",
        metrics: Mapping[str, str] | None = None,
        best: str | None = None,
        further: Mapping[str, str] | None = None,
        remarks: Mapping[str, str] | None = None,
        task: str | None = None,
        hash_names: bool = False,
    ) -> None:
        self.run_folder, self.network = run_folder, unwrap(network)
        self.training, self.validation, self.skipped = training, validation, skipped
        self.held_out = not validation or list(validation) != list(training)
        self.title, self.best, self.further = title, best, {**(remarks or {}), **(further or {})}
        self.hash_names, self.task = hash_names, task
        self.metrics = _METRICS if metrics is None else {name: (label, ".4g") for name, label in metrics.items()}
        self._handled: BaseException | None = None
        self._began = False

    def attach(self, engine: Engine) -> None:
        """Registers with the trainer."""
        if not is_main_rank():
            return
        if self.run_folder.resumed:
            engine.add_event_handler(Events.STARTED, self._make_good)
        engine.add_event_handler(Events.EPOCH_STARTED, self._begin)
        engine.add_event_handler(Events.COMPLETED, self._complete)
        engine.add_event_handler(Events.EXCEPTION_RAISED, self._fail)

    def _make_good(self, engine: Engine) -> None:
        """Writes what a kill after the last epoch has prevented; an unfinished run gets its page when it ends."""
        page, product = self.run_folder.summary, self.run_folder.model
        if not engine.should_terminate:
            return
        said = page.read_text(errors="replace") if page.is_file() else ""
        newer = product.exists() and page.is_file() and product.stat().st_mtime_ns > page.stat().st_mtime_ns
        missing = not self.run_folder.report.is_file()
        if missing or newer or f"Training completed {engine.state.epoch} of " not in said:
            self._complete(engine)

    def _begin(self, engine: Engine) -> None:  # noqa: ARG002 - the signature of a handler
        self._began = True

    def _complete(self, engine: Engine) -> None:
        self._write(engine, f"completed {engine.state.epoch} of {engine.state.max_epochs} epochs")

    def _fail(self, engine: Engine, error: BaseException) -> None:
        refused = self.run_folder.resumed and not self._began  # the page of the run's last training stays
        if error is not self._handled and not refused:  # Ignite passes on an error twice
            self._handled = error
            where = f"in epoch {engine.state.epoch} of {engine.state.max_epochs}"
            user_error = user_error_in(error)
            if isinstance(error, KeyboardInterrupt):
                outcome = f"interrupted {where}"
            else:
                # another error's text may quote anything, so only its kind is written
                outcome = f"stopped {where} by an error: {user_error or type(error).__name__}"
            self._write(engine, outcome)
        raise error

    def _write(self, engine: Engine, outcome: str) -> None:
        rows = read_history(self.run_folder.history)
        data, notes = data_facts(self.training, self.validation, self.held_out)
        facts = RunFacts(
            title=self.title,
            outcome=f"Training {outcome}.",
            trained=training_facts(self.network, engine.state.device, rows),
            data={**data, **self.further},
            names=volume_names(self.training, self.validation, self.held_out),
            notes=notes,
            skipped=self.skipped,
            metrics=EpochMetrics.choose(rows, self._labelled(engine, rows), self.best, self.held_out),
            rows=rows,
            files=files_facts(self.run_folder, self.held_out),
            hints=self._hints(),
        )
        text = facts.markdown()
        with replace_file(self.run_folder.summary) as temporary:
            temporary.write_text(text)
        write_run_report(self.run_folder, facts, hash_names=self.hash_names)
        logger.info("summary (%s, with pictures %s)\n%s", self.run_folder.summary, self.run_folder.report, text)

    def _labelled(self, engine: Engine, rows: Sequence[Mapping[str, float]]) -> Mapping[str, tuple[str, str]]:
        """The metrics to show; the training loss says which objectives it is the sum of, where the loss has any."""
        objectives = getattr(getattr(engine, "loss_function", None), "objectives", {})
        trained = [
            name if objective.weight == 1 else f"{objective.weight:g} x {name}"
            for name, objective in objectives.items()
            if objective.weight > 0 and rows and f"train/{name}" in rows[-1]
        ]
        if not trained or self.metrics is not _METRICS:
            return self.metrics
        label, form = _METRICS["train/loss"]
        return {**_METRICS, "train/loss": (f"{label}: {' + '.join(trained)}", form)}

    def _hints(self) -> list[str]:
        folder = self.run_folder
        logdir, run = shlex.quote(str(folder.tensorboard)), shlex.quote(str(folder.path))
        hints = [f"scalars and pictures: `tensorboard --logdir {logdir}`"]
        if folder.last_checkpoint.exists():
            hints += [f"to go on: the same command with `--resume {run}` (and more `--epochs` if it completed)"]
        if folder.model.exists():
            if self.metrics is _METRICS:
                hints += [f'in Python: `torch.load("{folder.model}", weights_only=True)` fits the encoder key for key']
            hints += [f"to {what}: `{command}`" for what, command in next_steps(folder, self.task).items()]
        return hints
