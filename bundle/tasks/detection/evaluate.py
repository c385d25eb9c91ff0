# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""Evaluates predicted boxes on scans whose boxes are known."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from matplotlib.image import imsave

from bundle.atomic import replace_file
from bundle.data import FoundVolume, read_volume
from bundle.errors import UserError
from bundle.evaluation import (
    BOX_METRICS,
    FROC_RATES,
    Bootstrap,
    BoxMatches,
    Estimate,
    EvaluationFolder,
    case_name,
    froc_curve,
    match_names,
    publish,
    seen_notes,
    shortened_list,
    summary_rows,
    unmatched_notes,
    write_table,
)
from bundle.figures.detection import DrawnVolume, draw_detections
from bundle.figures.froc import draw_froc
from bundle.tasks.detection.boxes import boxes_in_voxels, check_box_classes, list_labels
from bundle.tasks.detection.find import find_boxes
from bundle.tasks.detection.written_boxes import ScanBoxes, read_boxes

__all__ = ["DetectionEvaluation"]

logger = logging.getLogger(__name__)

_CASES = ("case", "class", "boxes", "hits", "missed", "false_positives", "group", "note")
_BOXES = ("case", "class", "what", "score", "x", "y", "z", "width", "height", "depth")


class DetectionEvaluation:
    """Compares predicted boxes with known ones in mm, and writes tables, pictures and values with intervals.

    Args:
        predictions: as for `read_boxes`.
        dataset_dir: as for `find_boxes`.
        output: where to.
        classes: as for `check_box_classes`.
        part: as for `find_boxes`.
        min_score: of the boxes that count in the table of cases and in pictures; all count in the metrics.
        resamples: of the bootstrap.
        confidence: of its intervals.
        seed: of its draws.
        worst: how many of the worst cases to draw.
        hash_names: whether cases have a digest for a name.
        seen: fingerprints of the scans that the model has seen, as for `bundle.evaluation.seen_notes`.

    Raises:
        UserError: if an option or a file cannot be used, or no scan has a prediction.
    """

    def __init__(
        self,
        *,
        predictions: str | os.PathLike[str] | None,
        dataset_dir: str | os.PathLike[str],
        output: EvaluationFolder,
        classes: Mapping[str, int] | Sequence[str],
        part: str = "auto",
        min_score: float = 0.5,
        resamples: int = 1000,
        confidence: float = 0.95,
        seed: int = 0,
        worst: int = 4,
        hash_names: bool = False,
        seen: Mapping[str, Sequence[str]] | None = None,
    ) -> None:
        if predictions is None:
            raise UserError("--predictions is missing: give boxes.json, boxes.csv, or their folder")
        check_box_classes(classes)
        self.predictions, self.dataset_dir, self.output = Path(predictions), Path(dataset_dir), output
        self.classes, self.part, self.min_score = classes, part, min_score
        self.resamples, self.confidence, self.seed = resamples, confidence, seed
        self.worst, self.hash_names, self.seen = worst, hash_names, seen
        self.volumes = find_boxes(dataset_dir, part)

    def run(self) -> None:
        """Evaluates, writes and says where to look."""
        predicted, unknown = read_boxes(self.predictions, self.classes)
        names = match_names(self.volumes, list(predicted))
        pairs = [(volume, predicted[name]) for volume, name in zip(self.volumes, names) if name is not None]
        missing = [case_name(v, hashed=self.hash_names) for v, name in zip(self.volumes, names) if name is None]
        if not pairs:
            raise UserError(
                f"none of the {len(self.volumes)} scans is in {self.predictions}: name them as {self.dataset_dir} does"
            )
        volumes, boxes = [volume for volume, _ in pairs], [found for _, found in pairs]
        true = [self._true(volume) for volume in volumes]
        named = set(list_labels(self.classes))
        others = [label for volume in volumes for label in volume.annotations["label"] if label not in named]
        matches = BoxMatches(
            [(_corners(placed), labels, scores) for placed, labels, scores in boxes],
            [(_corners(placed), labels) for placed, labels in true],
            list(self.classes),
        )
        metrics = self._summarise(volumes, matches)
        unused = [name for name in predicted if name not in names]
        notes = seen_notes(self.volumes, self.seen, hashed=self.hash_names)
        notes += unmatched_notes(missing, len(self.volumes), unused, hashed=self.hash_names)
        if missing:
            notes.append("a scan in which nothing was found needs an entry in boxes.json or a row in predictions.csv")
        if unknown:
            notes.append(f"boxes of other classes are left out: {shortened_list(unknown)}")
        if others:
            labels = shortened_list([str(label) for label in dict.fromkeys(others)])
            notes.append(f"{len(others)} true boxes are left out, of labels that --classes does not name: {labels}")
        order = self._write_cases(volumes, matches, missing)
        write_table(self.output.path / "boxes.csv", _BOXES, self._box_rows(volumes, boxes, true, matches))
        notes += self._draw(volumes, boxes, true, matches, metrics, order)
        settings = {
            "predictions": str(self.predictions),
            "dataset_dir": str(self.dataset_dir),
            "part": self.part,
            "classes": self.classes,
            "min_score": self.min_score,
            "froc_rates": list(FROC_RATES),
            "resamples": self.resamples,
            "confidence": self.confidence,
            "seed": self.seed,
            "cases": {"evaluated": len(pairs), "without prediction": len(missing)},
        }
        shown = {"map": "mAP", "ap_iou_0.10": "AP, IoU 0.1", "ap_iou_0.50": "AP, IoU 0.5", "froc": "FROC"}
        summary = summary_rows(metrics, shown)
        lead = f"{len(pairs)} scans, with {100 * self.confidence:g} % intervals over people"
        publish(
            self.output,
            task="detection",
            metrics=metrics,
            higher_is_better=BOX_METRICS,
            settings=settings,
            notes=notes,
            lead=lead,
            summary=summary,
            hash_names=self.hash_names,
        )

    def _true(self, volume: FoundVolume) -> tuple[np.ndarray, np.ndarray]:
        """The known boxes of the classes, and the number of each one's class."""
        labels = list_labels(self.classes)
        pairs = [pair for pair in zip(volume.annotations["box"], volume.annotations["label"]) if pair[1] in labels]
        boxes = np.array([box for box, _ in pairs], dtype=np.float64).reshape(-1, 6)
        return boxes, np.array([labels.index(label) for _, label in pairs], dtype=np.int64)

    def _summarise(self, volumes: Sequence[FoundVolume], matches: BoxMatches) -> dict[str, dict[str, Estimate]]:
        bootstrap = Bootstrap(
            [v.group or v.name for v in volumes], resamples=self.resamples, confidence=self.confidence, seed=self.seed
        )
        names = (*matches.classes, "mean")

        def values(cases: np.ndarray) -> Sequence[float]:
            table = matches.metrics(cases)
            return [table[metric][name] for metric in BOX_METRICS for name in names]

        estimates = iter(bootstrap.statistics(values, [len(volumes)] * (len(names) * len(BOX_METRICS))))
        return {metric: {name: next(estimates) for name in names} for metric in BOX_METRICS}

    def _write_cases(self, volumes: Sequence[FoundVolume], matches: BoxMatches, missing: Sequence[str]) -> list[int]:
        """A row for each scan and class, the scan with most misses and false positives first; returns their order."""
        people = {group: n for n, group in enumerate(sorted({v.group or v.name for v in volumes}), start=1)}
        counts = [
            [matches.count(case, label, min_score=self.min_score) for label in range(len(matches.classes))]
            for case in range(len(volumes))
        ]
        order = sorted(range(len(volumes)), key=lambda case: -sum(wrong for _, *both in counts[case] for wrong in both))
        rows: list[dict[str, Any]] = [
            {
                "case": case_name(volumes[case], hashed=self.hash_names),
                "class": name,
                "boxes": hits + misses,
                "hits": hits,
                "missed": misses,
                "false_positives": false,
                "group": people[volumes[case].group or volumes[case].name],
            }
            for case in order
            for name, (hits, misses, false) in zip(matches.classes, counts[case], strict=True)
        ]
        rows += [{"case": name, "class": c, "note": "no prediction"} for name in missing for c in matches.classes]
        self.output.write_cases(_CASES, rows)
        return order

    def _box_rows(
        self,
        volumes: Sequence[FoundVolume],
        boxes: Sequence[ScanBoxes],
        true: Sequence[tuple[np.ndarray, np.ndarray]],
        matches: BoxMatches,
    ) -> Iterator[dict[str, Any]]:
        """Each predicted box, hit or false positive, and each true one that no box hits."""
        for case, volume in enumerate(volumes):
            name = case_name(volume, hashed=self.hash_names)
            for label, class_name in enumerate(matches.classes):
                hit, found = matches.found(case, label)
                placed, labels, scores = boxes[case]
                predicted = zip(placed[labels == label], scores[labels == label], hit)
                for box, score, is_hit in predicted:
                    what = "hit" if is_hit else "false positive"
                    yield {"case": name, "class": class_name, "what": what, "score": float(score), **_numbers(box)}
                known, known_labels = true[case]
                for box, is_found in zip(known[known_labels == label], found):
                    if not is_found:
                        yield {"case": name, "class": class_name, "what": "missed", **_numbers(box)}

    def _draw(
        self,
        volumes: Sequence[FoundVolume],
        boxes: Sequence[ScanBoxes],
        true: Sequence[tuple[np.ndarray, np.ndarray]],
        matches: BoxMatches,
        metrics: Mapping[str, Mapping[str, Estimate]],
        order: Sequence[int],
    ) -> list[str]:
        """Draws the worst cases; gives what is odd about the places of their boxes."""
        self.output.clear_panels()
        notes = []
        cases = np.arange(len(volumes))
        curves = {
            name: froc_curve(*matches.scores(cases, label), matches.truths(cases, label), len(cases))
            for label, name in enumerate(matches.classes)
            if matches.truths(cases, label)
        }
        pictures = {"froc": draw_froc(curves, {c: metrics["froc"][c].mean for c in curves}, title="FROC, IoU 0.1")}
        for number, case in enumerate(order[: self.worst], start=1):
            title = case_name(volumes[case], hashed=self.hash_names)
            drawn = _drawn(volumes[case], boxes[case], true[case][0], self.min_score)
            if drawn is None:
                logger.warning("%s: the image cannot be read, so it has no picture", title)
            else:
                pictures[f"worst_{number:02d}"] = draw_detections([drawn], title=title)
                for what, placed in (("true", drawn.true), ("predicted", drawn.predicted)):
                    if count := drawn.count_outside(placed):
                        notes.append(
                            f"{title}: {count} of {len(placed)} {what} boxes have their centre outside the image; "
                            "coordinates are mm in RAS, DICOM's and ITK's are LPS: turn the signs of x and y"
                        )
        for name, pixels in pictures.items():
            with replace_file(self.output.panels / f"{name}.png") as temporary:
                imsave(temporary, pixels)
        return notes


def _corners(boxes: np.ndarray) -> np.ndarray:
    """From centre and size to the lowest and the highest corner."""
    corners: np.ndarray = np.concatenate([boxes[:, :3] - boxes[:, 3:] / 2, boxes[:, :3] + boxes[:, 3:] / 2], axis=1)
    return corners


def _numbers(box: np.ndarray) -> dict[str, float]:
    return dict(zip(_BOXES[-6:], (float(number) for number in box), strict=True))


def _drawn(volume: FoundVolume, found: ScanBoxes, true: np.ndarray, min_score: float) -> DrawnVolume | None:
    """The image with axes R, A, S and the boxes in its voxels; None where it cannot be read."""
    try:
        image = read_volume(volume.files, volume.name, constant=True, stacked=True)
    except UserError:
        return None
    affine, array = np.asarray(image.affine, dtype=np.float64), image.numpy()[0]
    to_ras = nibabel.io_orientation(affine)
    turned = affine @ nibabel.orientations.inv_ornt_aff(to_ras, array.shape)
    boxes, _, scores = found
    shown = scores >= min_score
    return DrawnVolume(
        image=nibabel.orientations.apply_orientation(array, to_ras),
        spacing=tuple(np.linalg.norm(turned[:3, :3], axis=0).tolist()),
        true=boxes_in_voxels(true, turned),
        predicted=boxes_in_voxels(boxes[shown][:10], turned),
        scores=scores[shown][:10],
    )
