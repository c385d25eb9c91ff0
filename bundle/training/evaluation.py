# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""Validation of a checkpoint apart from training: loads it, and reports the metrics."""

from __future__ import annotations

import csv
import json
import logging
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ignite.engine import Engine, Events
from torch import nn

from bundle.atomic import free_path, replace_file
from bundle.data import PreparedVolume, SkippedVolume
from bundle.runs import TrainedRun
from bundle.runs.distributed import is_main_rank, unwrap
from bundle.training.same_data import earlier_split

__all__ = ["EvaluationReport", "RunCheckpointLoader"]

logger = logging.getLogger(__name__)


class RunCheckpointLoader:
    """Loads a run's weights into the network when the evaluator starts.

    Put it after handlers that copy the untrained network when they are made. `MonaiAlgo` knows by "CheckpointLoader" in
    the name that federated learning, which brings its own weights, does without it.

    Args:
        trained: the run.
        network: the pre-training network, wrapped or not.
    """

    def __init__(self, *, trained: TrainedRun, network: nn.Module) -> None:
        self.trained, self.network = trained, unwrap(network)

    def attach(self, engine: Engine) -> None:
        """Registers at the start of the evaluator."""
        engine.add_event_handler(Events.STARTED, self)

    def __call__(self, engine: Engine) -> None:  # noqa: ARG002 - the signature of a handler
        """Loads the weights."""
        self.trained.load_into(self.network)


class EvaluationReport:
    """Writes the metrics to `evaluation.json` and `evaluation.csv`, and logs them as a table.

    Files of earlier evaluations stay: then it is `evaluation_2.json`, and so on. Under several processes only the main
    one writes. Volumes that the run was trained on are named, and a line says how many. Put it after the handlers that
    compute metrics.

    Args:
        trained: the run that is evaluated.
        volumes: on which.
        skipped: volumes that cannot be used.
        output_dir: where to write; None is the run's folder.
        settings: to be recorded beside the metrics; values that are no JSON become text.
    """

    def __init__(
        self,
        *,
        trained: TrainedRun,
        volumes: Sequence[PreparedVolume],
        skipped: Sequence[SkippedVolume] = (),
        output_dir: str | os.PathLike[str] | None = None,
        settings: dict[str, Any] | None = None,
    ) -> None:
        self.trained, self.volumes, self.skipped, self.settings = trained, volumes, skipped, settings or {}
        self.folder = trained.folder.path if output_dir is None else Path(output_dir)

    def attach(self, engine: Engine) -> None:
        """Registers at the end of the evaluation."""
        if is_main_rank():
            engine.add_event_handler(Events.COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        """Writes the files and logs the table."""
        metrics = {name: float(value) for name, value in engine.state.metrics.items()}
        part_of = earlier_split(run_folder=self.trained.folder, volumes_may_change=True)
        seen = [volume.name for volume in self.volumes if part_of is not None and part_of(volume) == "training"]
        if seen:
            logger.warning(
                "%d of the %d volumes were trained on, %s among them: the metrics are not those of new volumes",
                len(seen), len(self.volumes), seen[0],
            )  # fmt: skip
        report = {
            "run": self.trained.folder.path.name,
            "checkpoint": self.trained.checkpoint.name,
            "epoch": self.trained.epoch,
            "volumes": [volume.name for volume in self.volumes],
            "trained_on": seen,
            "modalities": dict(Counter(volume.modality for volume in self.volumes)),
            "skipped": [skipped._asdict() for skipped in self.skipped],
            "settings": self.settings,
            "metrics": metrics,
        }
        path = free_path(self.folder / "evaluation.json")
        with replace_file(path) as temporary:
            temporary.write_text(json.dumps(report, indent=4, default=str) + "\n")
        with replace_file(path.with_suffix(".csv")) as temporary, temporary.open("w", newline="") as file:
            csv.writer(file).writerows([("metric", "value"), *metrics.items()])
        width = max(map(len, metrics), default=0)
        table = "\n".join(f"{name:<{width}}  {value:.6g}" for name, value in metrics.items())
        logger.info("metrics on %d volumes, also in %s and .csv\n%s", len(self.volumes), path, table)
