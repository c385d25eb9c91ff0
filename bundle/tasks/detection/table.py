# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""The boxes that a detector found in the validation volumes, as a list and as a table."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from ignite.engine import Engine, Events
from monai.utils.enums import CommonKeys

from bundle.atomic import replace_file
from bundle.data import PreparedVolume, table_row
from bundle.runs import RunFolder
from bundle.runs.distributed import gather, is_main_rank
from bundle.tasks.detection.boxes import boxes_in_world, list_labels

__all__ = ["PredictedBoxes"]


class PredictedBoxes:
    """Writes `boxes.json` and `boxes.csv` into the run folder after each validation that is the best so far.

    They belong to the same epoch as `checkpoints/best.pt` and `model.pt`. Boxes are centre and size in mm in the RAS
    coordinates of the original file, in the form of the data list; the largest score comes first.

    Args:
        run_folder: where to.
        volumes: the validation volumes, for their names.
        classes: as for `check_box_classes`.
        key_metric: higher is better. Put this handler where the metric has been computed.
    """

    def __init__(
        self,
        *,
        run_folder: RunFolder,
        volumes: Sequence[PreparedVolume],
        classes: Mapping[str, int] | Sequence[str],
        key_metric: str,
    ) -> None:
        self.json, self.csv = run_folder.path / "boxes.json", run_folder.path / "boxes.csv"
        self.volumes, self.classes, self.key_metric = volumes, classes, key_metric
        self.names, self.labels = list(classes), list_labels(classes)
        self.best = -np.inf
        if run_folder.resumed and self.json.exists():
            self.best = json.loads(self.json.read_text())[key_metric]
        self._found: list[dict[str, Any]] = []

    def attach(self, engine: Engine) -> None:
        """Registers with the evaluator, on every process."""
        engine.add_event_handler(Events.EPOCH_STARTED, self._forget)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._collect)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._write)

    def _forget(self, engine: Engine) -> None:  # noqa: ARG002 - the signature of a handler
        self._found = []

    def _collect(self, engine: Engine) -> None:
        batch = engine.state.batch
        for number, affine, pred in zip(batch["volume"], batch["affine"], engine.state.output[CommonKeys.PRED]):
            order = pred["label_scores"].argsort(descending=True).cpu()
            boxes = boxes_in_world(pred["box"].float().cpu().numpy(), affine.numpy())[order.numpy()]
            self._found.append({
                "image": self.volumes[int(number)].name,
                "box": boxes.round(3).tolist(),
                "label": [self.labels[number] for number in pred["label"].cpu()[order].tolist()],
                "score": [round(score, 4) for score in pred["label_scores"].float().cpu()[order].tolist()],
            })  # fmt: skip

    def _write(self, engine: Engine) -> None:
        found = sorted((one for rank in gather(self._found) for one in rank), key=lambda one: str(one["image"]))
        value = float(engine.state.metrics[self.key_metric])
        if not is_main_rank() or value <= self.best:
            return
        self.best = value
        content = {"epoch": engine.state.epoch, self.key_metric: value, "classes": self.classes, "validation": found}
        with replace_file(self.json) as temporary:
            temporary.write_text(json.dumps(content, indent=1) + "\n")
        name_by_label = dict(zip(self.labels, self.names))
        with replace_file(self.csv) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
            table = csv.writer(file)
            table.writerow(["image", "class", "score", "x", "y", "z", "width", "height", "depth"])
            for one in found:
                for box, label, score in zip(one["box"], one["label"], one["score"]):
                    table.writerow(table_row([one["image"], name_by_label[label], score, *box]))
