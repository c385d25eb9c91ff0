# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""Evaluates a folder of label maps, whoever made them, on labelled scans."""

from __future__ import annotations

import logging
import math
import os
import warnings
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from matplotlib.image import imsave
from tqdm import tqdm

from bundle.atomic import replace_file
from bundle.data import FoundVolume, skipped_because
from bundle.data.find import volume_files
from bundle.data.names import name_digest, pseudonymous_text
from bundle.errors import UserError
from bundle.evaluation import (
    Bootstrap,
    Estimate,
    EvaluationFolder,
    case_name,
    match_names,
    publish,
    seen_notes,
    shortened_list,
    skipped_reasons,
    summary_rows,
    unmatched_notes,
)
from bundle.evaluation.case_picture import class_numbers, draw_case, viewer_case
from bundle.evaluation.label_map_case import COLUMNS, EvaluatedCase, LabelledCase, evaluate_case
from bundle.evaluation.mask_metrics import HIGHER_IS_BETTER
from bundle.evaluation.written_labels import Classes, find_label_maps
from bundle.reports import Case
from bundle.tasks.segmentation.evaluated_classes import (
    check_evaluated,
    check_ignored,
    pick_evaluated,
    predicted_classes,
    same_names,
    tolerances,
)
from bundle.tasks.segmentation.find import find_segmentations

__all__ = ["SegmentationEvaluation"]

logger = logging.getLogger(__name__)

#: metrics of the summary
_SHOWN = {
    "dice": "Dice",
    "hausdorff95_mm": "95 % Hausdorff, mm",
    "surface_dice": "surface Dice",
    "volume_error_ml": "volume error, mL",
    "absolute_volume_error_percent": "absolute, %",
}
#: a data set that has one of these has images
_IMAGE_FOLDERS = {"imagesTr", "imagesTs", "images"}


class SegmentationEvaluation:
    """Compares label maps with those of labelled scans, and writes tables, pictures and means with intervals.

    A scan without a prediction, a prediction without a scan and a case that cannot be read are listed, and end nothing.

    Args:
        predictions: folder of label maps with the original values: of `predict_segmentation`, of nnU-Net, or any whose
            names match those of the scans.
        dataset_dir: as for `find_segmentations`, or a folder of label maps alone.
        output: where to.
        classes: value in the label maps by the name of each class, or a list of values, which make a region; empty:
            those that the `about.json` of the predictions names, with the values of the data set's `dataset.json`
            where this has them; or all that a `dataset.json` beside the scans or the predictions names; or one for
            each mask of structures.
        prediction_classes: the values in the predictions, where they differ and neither `about.json` nor nnU-Net's
            `dataset.json` beside them says it.
        ignore: value of voxels in the reference that count in nothing; None: that of the label `ignore` in the data
            set's `dataset.json`, if it has one.
        part: as for `find_segmentations`.
        tolerance_mm: of the surface Dice, or one for each class by its name.
        resample: whether predictions on other grids are resampled; else they are listed as failed.
        missing: "report": a scan without a prediction counts in no mean; "empty": as one in which nothing was found.
        resamples: of the bootstrap.
        confidence: of its intervals.
        seed: of its draws.
        worst: how many of the worst cases to draw.
        hash_names: whether cases have a digest for a name.
        workers: cases at a time.
        seen: fingerprints of the scans that the model has seen, as for `bundle.evaluation.seen_notes`.

    Raises:
        UserError: if an option does not fit, there are no classes, or nothing can be evaluated.
    """

    def __init__(
        self,
        *,
        predictions: str | os.PathLike[str] | None,
        dataset_dir: str | os.PathLike[str],
        output: EvaluationFolder,
        classes: Classes | None = None,
        prediction_classes: Classes | None = None,
        ignore: int | None = None,
        part: str = "auto",
        tolerance_mm: float | Mapping[str, float] = 2.0,
        resample: bool = False,
        missing: str = "report",
        resamples: int = 1000,
        confidence: float = 0.95,
        seed: int = 0,
        worst: int = 8,
        hash_names: bool = False,
        workers: int = 1,
        seen: Mapping[str, Sequence[str]] | None = None,
    ) -> None:
        if predictions is None:
            raise UserError("--predictions is missing: give the folder of label maps to evaluate")
        if classes:
            check_evaluated(classes)
        if missing not in ("report", "empty"):
            raise UserError(f"--missing {missing!r} is not known: choose report or empty")
        self.predictions, self.dataset_dir, self.output = Path(predictions), Path(dataset_dir), output
        self.part, self.resample, self.missing = part, resample, missing
        self.resamples, self.confidence, self.seed = resamples, confidence, seed
        Bootstrap([], resamples=resamples, confidence=confidence, seed=seed)  # refused before the work, if it is
        self.worst, self.hash_names, self.workers, self.seen = worst, hash_names, workers, seen
        self._skipped: dict[str, str] = {}  # why a prediction left scans out
        self.volumes = _find_references(self.dataset_dir, part)
        predicted = predicted_classes(self.predictions)
        self.classes = dict(pick_evaluated(classes or {}, predicted, self.dataset_dir, self.predictions, self.volumes))
        check_evaluated(self.classes)
        if "mean" in self.classes:
            raise UserError("--classes has a class 'mean', as the mean of all classes is called: give it another name")
        self.prediction_classes = same_names(prediction_classes, self.classes, predicted)
        self.tolerance_mm = tolerances(tolerance_mm, self.classes)
        self.ignore = check_ignored(ignore, self.classes, self.dataset_dir, self.volumes)

    def run(self) -> None:
        """Evaluates, writes and says where to look."""
        cases, unused = self._match()
        every = self._evaluate(cases)
        done = sorted((c for c in every if c.rows and not c.problem), key=_worst_first)
        if not done:
            raise UserError(self._nothing(every, unused))
        metrics = self._summarise(done)
        notes = self._notes(every, unused)
        others = [case for case in every if case.problem or not case.rows]
        rows = [{**row, "group": number} for number, case in _numbered(done) for row in case.rows]
        rows += [
            {"case": case.case.name, "class": name, "note": case.problem or "no prediction"}
            for case in others
            for name in self.classes
        ]
        self.output.write_cases(COLUMNS, rows)
        drawn = [case for case in done if math.isfinite(case.score) and case.case.prediction is not None][: self.worst]
        self._draw(drawn)
        settings = self._settings(every, unused)
        mm = set(self.tolerance_mm.values())
        within = f", {mm.pop():g} mm" if len(mm) == 1 else ""
        summary = summary_rows(metrics, {**_SHOWN, "surface_dice": f"surface Dice{within}"})
        lead = f"{len(done)} of {len(every)} scans, with {100 * self.confidence:g} % intervals over people"
        logger.info("worst cases by mean Dice: %s", ", ".join(f"{c.case.name} {c.score:.3f}" for c in drawn))
        publish(
            self.output,
            task="segmentation",
            metrics=metrics,
            higher_is_better=HIGHER_IS_BETTER,
            settings=settings,
            notes=notes,
            lead=lead,
            summary=summary,
            hash_names=self.hash_names,
            captions={f"worst_{n:02d}": f"{c.case.name}: Dice {c.score:.3f}" for n, c in enumerate(drawn, start=1)},
            explanation="Reference: solid. Prediction: dashed. Each plane is where the two differ most.",
            cases=tqdm(map(self._viewer_case, drawn), total=len(drawn), desc="viewer", delay=2),
            count=len(drawn),
            classes=class_numbers(self.classes),
        )

    def _nothing(self, every: Sequence[EvaluatedCase], unused: Sequence[str]) -> str:
        """Why no case can be evaluated."""
        if failed := next((f"{case.case.name} {case.problem}" for case in every if case.problem), ""):
            return f"none of the {len(every)} scans can be evaluated, the first: {failed}; correct --predictions"
        shown = [self._shown_name(name) for name in unused[:1]]
        such = f", such as {shown[0]}," if shown else ""
        return (
            f"none of the {len(every)} scans, such as {every[0].case.name}, has a prediction of its name: the files in "
            f"--predictions{such} have others; correct --predictions, or name its files as the scans"
        )

    def _shown_name(self, name: str) -> str:
        return name_digest(name) if self.hash_names else name

    def _match(self) -> tuple[list[LabelledCase], list[str]]:
        """The cases, and the predictions that belong to none."""
        files = find_label_maps(self.predictions, self.prediction_classes)
        self._skipped = skipped_reasons(self.volumes, self.predictions)
        names = match_names(self.volumes, list(files))
        cases = [
            LabelledCase(
                name=case_name(volume, hashed=self.hash_names),
                group=volume.group or volume.name,
                image=volume.files,
                reference=volume.annotations["label"],
                prediction=None if name is None else files[name],
            )
            for volume, name in zip(self.volumes, names, strict=True)
        ]
        return cases, [name for name in files if name not in names]

    def _evaluate(self, cases: Sequence[LabelledCase]) -> list[EvaluatedCase]:
        with warnings.catch_warnings(), ThreadPoolExecutor(max(1, self.workers)) as pool:
            warnings.filterwarnings("ignore", message=".*always_return_as_numpy")  # MONAI calls itself so
            return list(tqdm(pool.map(self._evaluate_one, cases, self.volumes), total=len(cases), desc="evaluating"))

    def _evaluate_one(self, case: LabelledCase, volume: FoundVolume) -> EvaluatedCase:
        if case.prediction is None and self.missing == "report":
            skipped = self._told(self._skipped.get(volume.name, ""), case, volume)
            return EvaluatedCase(case, problem=skipped and f"its prediction was skipped: {skipped}")
        try:
            return evaluate_case(
                case,
                self.classes,
                prediction_classes=self.prediction_classes,
                tolerance_mm=self.tolerance_mm,
                resample=self.resample,
                ignore=self.ignore,
            )
        except Exception as error:  # noqa: BLE001  one broken case must not end the rest
            found = skipped_because(case.name, error)
            return EvaluatedCase(case, problem=self._told(f"{found.problem}; {found.remedy}", case, volume))

    def _told(self, problem: str, case: LabelledCase, volume: FoundVolume) -> str:
        """What is wrong with a case, without the names of its files where these are not to be told."""
        if not self.hash_names:
            return problem
        return pseudonymous_text(
            problem, replace(volume, annotations={**volume.annotations, "prediction": case.prediction})
        )

    def _summarise(self, done: Sequence[EvaluatedCase]) -> dict[str, dict[str, Estimate]]:
        bootstrap = Bootstrap(
            [case.case.group for case in done], resamples=self.resamples, confidence=self.confidence, seed=self.seed
        )
        found: dict[str, dict[str, Estimate]] = {}
        for metric in HIGHER_IS_BETTER:
            columns = {
                name: [_value(case.rows[number], metric) for case in done] for number, name in _counted(self.classes)
            }
            found[metric] = {name: bootstrap.mean(values) for name, values in columns.items()}
            found[metric]["mean"] = bootstrap.mean_of_means(columns)
        return found

    def _notes(self, every: Sequence[EvaluatedCase], unused: Sequence[str]) -> list[str]:
        """What a reader must know, a line each."""
        missing = [case.case.name for case in every if case.case.prediction is None]
        failed = [case for case in every if case.problem]
        counted = "count as if nothing had been found" if self.missing == "empty" else "count in no mean"
        notes = seen_notes(self.volumes, self.seen, hashed=self.hash_names)
        notes += unmatched_notes(missing, len(every), unused, counted, hashed=self.hash_names)
        if self.ignore is not None:
            notes.append(f"voxels with the value {self.ignore} in the reference count in nothing")
        if failed:
            notes.append(f"{len(failed)} of {len(every)} scans could not be evaluated and count in no mean")
            notes += [f"{case.case.name}: {case.problem}" for case in failed]
        for what, meaning in (
            ("in neither", "neither reference nor prediction has it: no Dice, no distance"),
            ("missed", "the prediction misses it: Dice 0, an infinite distance that the mean leaves out"),
            (
                "not in the reference",
                "only the prediction has it: Dice 0, an infinite distance that the mean leaves out",
            ),
            ("no reference mask", "there is no file of its reference"),
            ("no predicted mask", "there is no file of its prediction"),
        ):
            counts = {
                name: sum(case.rows[number].get("note") == what for case in every if case.rows)
                for number, name in _counted(self.classes)
            }
            if any(counts.values()):
                of = ", ".join(f"{name} in {count} cases" for name, count in counts.items() if count)
                notes.append(f"{of}: {meaning}")
        if resampled := [case.case.name for case in every if case.resampled]:
            notes.append(
                f"{len(resampled)} predictions were resampled to their reference's grid: {shortened_list(resampled)}"
            )
        for of, number in (("references", 0), ("predictions", 1)):
            if others := sorted({value for case in every for value in case.others[number]}):
                notes.append(f"the {of} hold values that no class has: {shortened_list([*map(str, others)])}")
        return notes

    def _settings(self, every: Sequence[EvaluatedCase], unused: Sequence[str]) -> dict[str, Any]:
        return {
            "predictions": str(self.predictions),
            "dataset_dir": str(self.dataset_dir),
            "part": self.part,
            "classes": self.classes,
            "prediction_classes": self.prediction_classes,
            "ignore": self.ignore,
            "tolerance_mm": self.tolerance_mm,
            "resample": self.resample,
            "missing": self.missing,
            "resamples": self.resamples,
            "confidence": self.confidence,
            "seed": self.seed,
            "cases": {
                "evaluated": sum(bool(case.rows) for case in every),
                "without prediction": sum(case.case.prediction is None for case in every),
                "failed": sum(bool(case.problem) for case in every),
                "predictions without a scan": len(unused),
            },
        }

    def _draw(self, done: Sequence[EvaluatedCase]) -> None:
        """Pictures of the worst cases, the worst first."""
        self.output.clear_panels()
        draw = partial(
            draw_case, classes=self.classes, prediction_classes=self.prediction_classes, resample=self.resample
        )
        for number, case in enumerate(tqdm(done, desc="drawing the worst", delay=2), start=1):
            pixels = draw(case.case, title=f"{case.case.name}: Dice {case.score:.3f}")
            with replace_file(self.output.panels / f"worst_{number:02d}.png") as temporary:
                imsave(temporary, pixels)

    def _viewer_case(self, case: EvaluatedCase) -> Case:
        return viewer_case(
            case.case,
            self.classes,
            prediction_classes=self.prediction_classes,
            resample=self.resample,
            note=f"Dice {case.score:.3f}",
        )


def _find_references(dataset_dir: Path, part: str) -> list[FoundVolume]:
    """The labelled scans, or the label maps of a folder that has nothing else."""
    is_list = dataset_dir.is_file() or (dataset_dir / "dataset.json").is_file()
    files = [] if is_list or part not in ("auto", "all") else volume_files(dataset_dir)
    if not files or {path.relative_to(dataset_dir).parts[0] for path in files} & _IMAGE_FOLDERS:
        return find_segmentations(dataset_dir, part)
    try:
        return find_segmentations(dataset_dir, part)
    except UserError:
        logger.info("%s holds no images: its files are taken as label maps, and pictures have no image", dataset_dir)
    return [
        FoundVolume(name=str(path.relative_to(dataset_dir)), files=(), annotations={"label": str(path)})
        for path in files
    ]


def _worst_first(case: EvaluatedCase) -> tuple[bool, float, str]:
    return math.isnan(case.score), case.score if math.isfinite(case.score) else 0.0, case.case.name


def _numbered(done: Sequence[EvaluatedCase]) -> list[tuple[int, EvaluatedCase]]:
    """Each case with the number of its person: a name may tell who it is."""
    people = {group: number for number, group in enumerate(sorted({c.case.group for c in done}), start=1)}
    return [(people[case.case.group], case) for case in done]


def _counted(classes: Classes) -> list[tuple[int, str]]:
    return list(enumerate(classes))


def _value(row: Mapping[str, Any], metric: str) -> float:
    """The value of a metric; an absolute one is that of the signed one."""
    value: float = row.get(metric.removeprefix("absolute_"), math.nan)
    return abs(value) if metric.startswith("absolute_") else value
