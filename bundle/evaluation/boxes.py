# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""How well boxes find boxes: average precision as COCO counts it, and FROC."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from monai.apps.detection.metrics.coco import COCOMetric
from monai.apps.detection.metrics.matching import matching_batch
from monai.data.box_utils import box_iou
from monai.metrics import compute_froc_curve_data, compute_froc_score

__all__ = ["BOX_METRICS", "FROC_RATES", "BoxMatches", "froc_curve"]

#: false positives per scan at which FROC reads the sensitivity (LUNA16: Setio et al. 2017, arXiv:1612.08012)
FROC_RATES = (0.125, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0)
#: the metrics of `BoxMatches.metrics`: whether higher is better
BOX_METRICS = {"map": True, "ap_iou_0.10": True, "ap_iou_0.50": True, "froc": True, "recall": True}
#: lowest and highest threshold of the IoU, and the step (nnDetection: Baumgartner et al. 2021, arXiv:2106.00817)
_IOU_RANGE = (0.1, 0.5, 0.05)
_IOUS = (0.1, 0.5)


class BoxMatches:
    """Predicted boxes matched with the true ones of each case, the highest score first, as COCO does.

    Args:
        predicted: of each case boxes ``[N, 6]`` as x0, y0, z0, x1, y1, z1, classes ``[N]`` counted from 0, and scores.
        true: of each case boxes and classes.
        classes: their names.
        max_boxes: per case and class, those that score highest.

    Example:
        >>> import numpy as np
        >>> from bundle.evaluation import BoxMatches
        >>> box, far = np.array([[0, 0, 0, 8, 8, 8.0]]), np.array([[50, 0, 0, 58, 8, 8.0]])
        >>> both, first = np.concatenate([box, far]), np.array([0])
        >>> matches = BoxMatches([(both, np.array([0, 0]), np.array([0.9, 0.4]))], [(box, first)], ["nodule"])
        >>> round(matches.metrics(np.array([0]))["map"]["nodule"], 6), matches.count(0, 0, min_score=0.3)
        (1.0, (1, 0, 1))
    """

    def __init__(
        self,
        predicted: Sequence[tuple[np.ndarray, np.ndarray, np.ndarray]],
        true: Sequence[tuple[np.ndarray, np.ndarray]],
        classes: Sequence[str],
        *,
        max_boxes: int = 100,
    ) -> None:
        self.classes = list(classes)
        self.coco = COCOMetric(
            classes=self.classes, iou_list=_IOUS, iou_range=_IOU_RANGE, max_detection=[max_boxes], verbose=False
        )
        self._cases: list[Any] = matching_batch(
            iou_fn=box_iou,
            iou_thresholds=self.coco.iou_thresholds,
            pred_boxes=[boxes for boxes, _, _ in predicted],
            pred_classes=[labels for _, labels, _ in predicted],
            pred_scores=[scores for _, _, scores in predicted],
            gt_boxes=[boxes for boxes, _ in true],
            gt_classes=[labels for _, labels in true],
            max_detections=max_boxes,
        )

    def metrics(self, cases: np.ndarray) -> dict[str, dict[str, float]]:
        """The metrics of some cases, by name and class; "mean" is over the classes that these cases have.

        `map` is the average precision, mean over thresholds of the IoU from 0.1 to 0.5; `recall` likewise. `froc` is
        the mean sensitivity at 1/8, 1/4, 1/2, 1, 2, 4 and 8 false positives per scan, where an IoU of 0.1 is a hit.
        """
        chosen = [self._cases[number] for number in cases]
        present = {name: self._truths(chosen, label) for label, name in enumerate(self.classes)}
        found = self.coco(chosen)[0] if any(present.values()) else {}
        starts = {"map": "mAP_", "ap_iou_0.10": "AP_IoU_0.10_", "ap_iou_0.50": "AP_IoU_0.50_", "recall": "mAR_"}
        table: dict[str, dict[str, float]] = {metric: {} for metric in BOX_METRICS}
        for label, (name, count) in enumerate(present.items()):
            for metric, start in starts.items():
                key = f"{name}_{start}"
                table[metric][name] = next(v for k, v in found.items() if k.startswith(key)) if count else math.nan
            curve = froc_curve(*self.scores(cases, label), count, len(cases)) if count else None
            table["froc"][name] = math.nan if curve is None else float(compute_froc_score(*curve, FROC_RATES))
        for values in table.values():
            known = [value for value in values.values() if math.isfinite(value)]
            values["mean"] = float(np.mean(known)) if known else math.nan
        return table

    def scores(self, cases: np.ndarray, label: int) -> tuple[np.ndarray, np.ndarray]:
        """The scores of the false positives and of the hits of a class, at an IoU of 0.1."""
        found = [self._cases[number][label] for number in cases if label in self._cases[number]]
        hits = [one["dtMatches"][0] > 0 for one in found]
        false = [one["dtScores"][~hit] for one, hit in zip(found, hits)]
        true = [one["dtScores"][hit] for one, hit in zip(found, hits)]
        return np.concatenate([np.zeros(0), *false]), np.concatenate([np.zeros(0), *true])

    def found(self, case: int, label: int) -> tuple[np.ndarray, np.ndarray]:
        """Which predicted boxes of a case and class hit, by falling score, and which true ones are hit: bool."""
        one = self._cases[case].get(label)
        if one is None:
            return np.zeros(0, dtype=bool), np.zeros(0, dtype=bool)
        return one["dtMatches"][0] > 0, one["gtMatches"][0] > 0

    def count(self, case: int, label: int, *, min_score: float) -> tuple[int, int, int]:
        """Of a case and class the hits, the misses and the false positives among boxes of at least that score."""
        false, true = self.scores(np.array([case]), label)
        hits = int((true >= min_score).sum())
        return hits, self._truths([self._cases[case]], label) - hits, int((false >= min_score).sum())

    def truths(self, cases: np.ndarray, label: int) -> int:
        """The number of true boxes of a class in some cases."""
        return self._truths([self._cases[number] for number in cases], label)

    @staticmethod
    def _truths(cases: Sequence[Mapping[int, Mapping[str, np.ndarray]]], label: int) -> int:
        return sum(len(case[label]["gtIgnore"]) for case in cases if label in case)


def froc_curve(false: np.ndarray, true: np.ndarray, targets: int, scans: int) -> tuple[np.ndarray, np.ndarray]:
    """MONAI's FROC curve: false positives per scan and sensitivity, for falling thresholds of the score from the end.

    Args:
        false: scores of the false positives.
        true: scores of the hits.
        targets: boxes that there are to find.
        scans: in which they were sought.
    """
    # MONAI leaves out the lowest score, and counts what was missed as found at 0: a score below all others is neither
    missed = np.full(targets - len(true), -np.inf)
    rates, sensitivity = compute_froc_curve_data(
        np.append(false, -np.inf), np.concatenate([true, missed]), targets, scans
    )
    return np.asarray(rates), np.asarray(sensitivity)
