# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""Average precision of boxes, as COCO and nnDetection count it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from ignite.engine import Engine, Events
from ignite.metrics import Metric
from monai.apps.detection.metrics.coco import COCOMetric
from monai.apps.detection.metrics.matching import matching_batch
from monai.data.box_utils import box_iou
from monai.utils.enums import CommonKeys
from torch import Tensor

from bundle.runs.distributed import gather

__all__ = ["AveragePrecision"]


class AveragePrecision(Metric):
    """Mean average precision of an evaluator's boxes over the thresholds of the IoU and the classes.

    Beside it, further metrics become metrics of the engine under `name`: `<name>/recall` (the mean over thresholds and
    classes of the share of boxes that are found), `<name>/precision_iou_0.10` (at the lowest threshold) and, with more
    than one class, `<name>/<class>`. Classes that no volume has a box of do not count.

    Args:
        classes: their names, in the order of their labels.
        name: of the further metrics.
        iou_range: lowest and highest threshold, and the step between two. Boxes of small lesions overlap little, so
            medical detection counts from 0.1 (nnDetection, Baumgartner et al. 2021, arXiv:2106.00817).
        max_boxes: per volume and class, those that score highest.
    """

    def __init__(
        self,
        *,
        classes: Sequence[str],
        name: str = "validation",
        iou_range: Sequence[float] = (0.1, 0.5, 0.05),
        max_boxes: int = 100,
    ) -> None:
        self.classes, self.name = list(classes), name
        self.coco = COCOMetric(
            classes=self.classes,
            iou_list=[iou_range[0]],
            iou_range=tuple(iou_range),
            max_detection=[max_boxes],
            verbose=False,
        )
        self.max_boxes, self.lowest = max_boxes, f"IoU_{iou_range[0]:.2f}"
        self.found: dict[str, float] = {}
        self._volumes: list[Any] = []
        super().__init__(output_transform=_predictions_and_targets, skip_unrolling=True)

    def reset(self) -> None:
        self._volumes, self.found = [], {}

    def update(self, output: tuple[Sequence[Mapping[str, Tensor]], Sequence[Mapping[str, Tensor]]]) -> None:
        """Adds a batch.

        Args:
            output: predictions and targets of each volume: dicts of `box`, `label` and, of a prediction,
                `label_scores`.
        """
        predictions, targets = output
        self._volumes += matching_batch(
            iou_fn=box_iou,
            iou_thresholds=self.coco.iou_thresholds,
            pred_boxes=[_array(p["box"]) for p in predictions],
            pred_classes=[_array(p["label"]) for p in predictions],
            pred_scores=[_array(p["label_scores"]) for p in predictions],
            gt_boxes=[_array(t["box"]) for t in targets],
            gt_classes=[_array(t["label"]) for t in targets],
            max_detections=self.max_boxes,
        )

    def compute(self) -> float:
        """The mean over the classes; all processes must call it."""
        volumes = [volume for rank in gather(self._volumes) for volume in rank]
        present = [name for number, name in enumerate(self.classes) if _has_boxes(volumes, number)]
        if not present:
            self.found = {}
            return 0.0
        found = self.coco(volumes)[0]
        # MONAI's own mean over the classes counts a class without boxes as -1
        class_means = {name: _pick(found, f"{name}_mAP_") for name in present}
        self.found = {
            f"{self.name}/recall": _mean(_pick(found, f"{name}_mAR_") for name in present),
            f"{self.name}/precision_iou_{self.lowest[4:]}": _mean(
                _pick(found, f"{name}_AP_{self.lowest}") for name in present
            ),
        }
        if len(self.classes) > 1:
            self.found |= {f"{self.name}/{name}": value for name, value in class_means.items()}
        return _mean(class_means.values())

    def attach(self, engine: Engine, name: str, usage: Any = None) -> None:
        """Registers with the evaluator."""
        super().attach(engine, name, *(() if usage is None else (usage,)))
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._add_metrics)

    def _add_metrics(self, engine: Engine) -> None:
        engine.state.metrics.update(self.found)


def _predictions_and_targets(output: Mapping[str, Any]) -> tuple[Any, Any]:
    return output[CommonKeys.PRED], output[CommonKeys.LABEL]


def _array(tensor: Tensor) -> np.ndarray:
    array: np.ndarray = tensor.detach().float().cpu().numpy()
    return array


def _has_boxes(volumes: Sequence[Mapping[int, Mapping[str, np.ndarray]]], label: int) -> bool:
    return any(len(volume[label]["gtIgnore"]) for volume in volumes if label in volume)


def _pick(found: Mapping[str, float], start: str) -> float:
    return next(value for name, value in found.items() if name.startswith(start))


def _mean(values: Any) -> float:
    return float(np.mean(list(values)))
