# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""Boxes that were found in new scans, as a table, a list and 3D Slicer's markups."""

from __future__ import annotations

import json
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
from ignite.engine import Engine, Events
from monai.config import KeysCollection
from monai.transforms import MapTransform

from bundle.atomic import replace_file
from bundle.prediction import PredictionFolder
from bundle.tasks.detection.boxes import boxes_in_world, list_labels
from bundle.tasks.detection.markups import box_markups

__all__ = ["BOX_COLUMNS", "BoxList", "SaveBoxesd"]

#: of boxes.csv, after the scan's name: centre and size are in mm, RAS
BOX_COLUMNS = ("class", "score", "x", "y", "z", "width", "height", "depth")


class SaveBoxesd(MapTransform):
    """Writes a scan's boxes as `markups/<name>.mrk.json`, and puts their rows where `PredictionTables` finds them.

    Boxes are centre and size in mm in the RAS coordinates of the scan's file, whatever the order of its axes. A scan
    without a box has no markups.

    Args:
        output: the folder.
        keys: of the boxes, ``[N, 8]``, as `BoxEnsemble` gives them, in voxels of the item's `affine`.
        classes: as for `check_box_classes`.
    """

    def __init__(
        self, output: PredictionFolder, keys: KeysCollection = "pred", *, classes: Mapping[str, int] | Sequence[str]
    ) -> None:
        super().__init__(keys)
        self.output, self.names = output, list(classes)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        item = dict(data)
        found = item[self.first_key(item)].double().cpu().numpy()
        boxes = boxes_in_world(found[:, :6], np.asarray(item["affine"])).round(3).tolist()
        classes, scores = found[:, 6].astype(int).tolist(), found[:, 7].round(4).tolist()
        rows = [
            dict(zip(BOX_COLUMNS, (self.names[index], score, *box), strict=True))
            for box, index, score in zip(boxes, classes, scores, strict=True)
        ]
        path = self.output.markups(item["name"])
        if rows:
            with replace_file(path) as temporary:
                content = box_markups(boxes, classes, scores, names=self.names)
                temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
            item["files"] = [*item.get("files", []), path.relative_to(self.output.path).as_posix()]
        else:
            path.unlink(missing_ok=True)  # of an earlier run
        return {
            **item,
            "row": {**item.get("row", {}), "boxes": len(rows)},
            "tables": {**item.get("tables", {}), "boxes": rows},
        }


class BoxList:
    """Writes `boxes.json` at the end: for each scan, those of earlier runs included, its boxes in the data list's form.

    Put it after `PredictionTables`.

    Args:
        output: the folder.
        classes: as for `check_box_classes`.
    """

    def __init__(self, output: PredictionFolder, *, classes: Mapping[str, int] | Sequence[str]) -> None:
        self.output, self.classes = output, classes
        self.labels = dict(zip(classes, list_labels(classes), strict=True))

    def attach(self, engine: Engine) -> None:
        """Registers with the evaluator."""
        engine.add_event_handler(Events.COMPLETED, self._write)

    def _write(self, engine: Engine) -> None:  # noqa: ARG002 - the signature of a handler
        predictions = []
        for name, record in sorted(self.output.records().items()):
            rows = record["tables"]["boxes"]
            predictions.append({
                "image": name,
                "box": [[row[column] for column in BOX_COLUMNS[2:]] for row in rows],
                "label": [self.labels[row["class"]] for row in rows],
                "score": [row["score"] for row in rows],
            })  # fmt: skip
        with replace_file(self.output.path / "boxes.json") as temporary:
            content = {"classes": self.classes, "predictions": predictions}
            temporary.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
