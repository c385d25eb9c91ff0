# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""Evaluates a table of probabilities on scans whose findings are known."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.image import imsave

from bundle.atomic import replace_file
from bundle.data import FoundVolume
from bundle.errors import UserError
from bundle.evaluation import (
    DECISION_METRICS,
    PROBABILITY_METRICS,
    Bootstrap,
    Estimate,
    EvaluationFolder,
    as_number,
    case_name,
    decision_metrics,
    match_names,
    probability_metrics,
    publish,
    read_table,
    reliability_curve,
    seen_notes,
    summary_rows,
    unmatched_notes,
)
from bundle.figures.calibration import draw_reliability
from bundle.figures.roc import draw_roc
from bundle.tasks.classification.find import find_findings

__all__ = ["ClassificationEvaluation"]

_METRICS = {**PROBABILITY_METRICS, **DECISION_METRICS}
#: names of the column of scans
_SCANS = ("scan", "volume", "image", "case")
#: of a table of findings, what is no finding
_NO_FINDING = ("image", "part", "group", "modality")


class ClassificationEvaluation:
    """Compares predicted probabilities with known findings, and writes tables, curves and values with intervals.

    Args:
        predictions: a table with a column `scan`, `volume`, `image` or `case` and a probability in a column of each
            finding's name, or `<finding>_probability`; perhaps a decision, 1 or 0, in `<finding>_decision`. Or the
            folder of one that is called `predictions.csv`.
        dataset_dir: as for `find_findings`.
        output: where to.
        findings: to evaluate; empty: those that both tables have.
        part: as for `find_findings`.
        resamples: of the bootstrap.
        confidence: of its intervals.
        seed: of its draws.
        hash_names: whether cases have a digest for a name.
        seen: fingerprints of the scans that the model has seen, as for `bundle.evaluation.seen_notes`.

    Raises:
        UserError: if a table cannot be used, no finding is in both, or no scan has a prediction.
    """

    def __init__(
        self,
        *,
        predictions: str | os.PathLike[str] | None,
        dataset_dir: str | os.PathLike[str],
        output: EvaluationFolder,
        findings: Sequence[str] = (),
        part: str = "auto",
        resamples: int = 1000,
        confidence: float = 0.95,
        seed: int = 0,
        hash_names: bool = False,
        seen: Mapping[str, Sequence[str]] | None = None,
    ) -> None:
        if predictions is None:
            raise UserError("--predictions is missing: give the table of probabilities, or its folder")
        path = Path(predictions)
        self.table = path / "predictions.csv" if path.is_dir() else path
        self.dataset_dir, self.output, self.part, self.hash_names = Path(dataset_dir), output, part, hash_names
        self.resamples, self.confidence, self.seed = resamples, confidence, seed
        self.rows, self.seen = read_table(self.table), seen
        self.findings = list(findings) or _common_findings(self.rows, self.table, self.dataset_dir)
        self.volumes = find_findings(dataset_dir, self.findings, part)

    def run(self) -> None:
        """Evaluates, writes and says where to look."""
        predicted = self._predicted()
        names = match_names(self.volumes, list(predicted))
        pairs = [(volume, predicted[name]) for volume, name in zip(self.volumes, names) if name is not None]
        missing = [case_name(v, hashed=self.hash_names) for v, name in zip(self.volumes, names) if name is None]
        if not pairs:
            raise UserError(
                f"none of the {len(self.volumes)} scans has a row in {self.table}: name them as {self.dataset_dir} does"
            )
        probabilities, decisions = (np.array([values[part] for _, values in pairs]) for part in (0, 1))
        labels = np.array([volume.annotations["label"] for volume, _ in pairs])
        metrics = self._summarise([volume for volume, _ in pairs], probabilities, decisions, labels)
        unused = [name for name in predicted if name not in names]
        notes = seen_notes(self.volumes, self.seen, hashed=self.hash_names)
        notes += unmatched_notes(missing, len(self.volumes), unused, hashed=self.hash_names)
        notes += self._label_notes(labels)
        self._write_cases([volume for volume, _ in pairs], probabilities, labels, missing)
        self._draw(probabilities, labels, metrics)
        settings = {
            "predictions": str(self.table),
            "dataset_dir": str(self.dataset_dir),
            "part": self.part,
            "findings": self.findings,
            "resamples": self.resamples,
            "confidence": self.confidence,
            "seed": self.seed,
            "cases": {"evaluated": len(pairs), "without prediction": len(missing)},
        }
        shown = {"auroc": "AUROC", "average_precision": "average precision"}
        shown |= {"calibration_error": "calibration error", "brier": "Brier score"}
        shown |= {metric: metric for metric in DECISION_METRICS if metric in metrics}
        summary = summary_rows(metrics, shown, first="finding")
        lead = f"{len(pairs)} scans, with {100 * self.confidence:g} % intervals over people"
        publish(
            self.output,
            task="classification",
            metrics=metrics,
            higher_is_better={metric: better for metric, better in _METRICS.items() if metric in metrics},
            settings=settings,
            notes=notes,
            lead=lead,
            summary=summary,
            hash_names=self.hash_names,
        )

    def _predicted(self) -> dict[str, tuple[list[float], list[float]]]:
        """By the name of a scan the probability of each finding, and the decision, NaN where there is none."""
        columns = list(self.rows[0]) if self.rows else []
        scans = next((column for column in _SCANS if column in columns), None)
        # of a training's table, or of one that `predict_classification` writes
        named = {
            finding: next((c for c in (finding, f"{finding}_probability") if c in columns), "")
            for finding in self.findings
        }
        lacking = [finding for finding, column in named.items() if not column]
        if scans is None or lacking:
            what = f"no column {', '.join(lacking)}" if lacking else f"no column of scans ({', '.join(_SCANS)})"
            raise UserError(f"{self.table} has {what}: its columns are {', '.join(columns) or 'none'}")
        found: dict[str, tuple[list[float], list[float]]] = {}
        for row in self.rows:
            name, values = row[scans], [as_number(row[column]) for column in named.values()]
            if all(not row[column].strip() for column in named.values()):
                continue  # a scan that was skipped
            if name in found:
                raise UserError(f"{self.table} has two rows of {name}: keep one")
            if not all(0 <= value <= 1 for value in values):
                raise UserError(f"{self.table} gives {name} the values {values}: give probabilities from 0 to 1")
            found[name] = values, [as_number(row.get(f"{finding}_decision", "")) for finding in self.findings]
        return found

    def _summarise(
        self, volumes: Sequence[FoundVolume], probabilities: np.ndarray, decisions: np.ndarray, labels: np.ndarray
    ) -> dict[str, dict[str, Estimate]]:
        bootstrap = Bootstrap(
            [v.group or v.name for v in volumes], resamples=self.resamples, confidence=self.confidence, seed=self.seed
        )
        known = ~np.isnan(labels)
        metrics = [*PROBABILITY_METRICS, *(DECISION_METRICS if np.isfinite(decisions).any() else ())]

        def values(cases: np.ndarray) -> Sequence[float]:
            """Each metric of each finding, and of their mean."""
            table = []
            for number in range(len(self.findings)):
                kept = cases[known[cases, number]]
                truth = labels[kept, number]
                found = probability_metrics(probabilities[kept, number], truth)
                found |= decision_metrics(decisions[kept, number], truth)
                table.append([found[metric] for metric in metrics])
            columns = np.array(table)
            there = np.isfinite(columns)
            means = np.where(there, columns, 0).sum(0) / np.where(there.any(0), there.sum(0), np.nan)
            return np.concatenate([columns, means[None]]).T.ravel().tolist()

        counts = [*known.sum(0).tolist(), int(known.any(1).sum())]
        found = iter(bootstrap.statistics(values, counts * len(metrics)))
        return {metric: {name: next(found) for name in (*self.findings, "mean")} for metric in metrics}

    def _label_notes(self, labels: np.ndarray) -> list[str]:
        notes = []
        for finding, column in zip(self.findings, labels.T):
            counted = (column == 1, column == 0, np.isnan(column))
            positive, negative, unknown = (int(np.count_nonzero(c)) for c in counted)
            text = f"{finding}: {positive} with it, {negative} without"
            if unknown:
                notes.append(f"{text}, {unknown} not known, which count in nothing")
            if not (positive and negative):
                notes.append(f"{text}: no AUROC and no average precision")
        return notes

    def _write_cases(
        self, volumes: Sequence[FoundVolume], probabilities: np.ndarray, labels: np.ndarray, missing: Sequence[str]
    ) -> None:
        """A row for each scan and finding, the farthest from the truth first."""
        people = {group: n for n, group in enumerate(sorted({v.group or v.name for v in volumes}), start=1)}
        rows: list[dict[str, Any]] = [
            {
                "case": case_name(volume, hashed=self.hash_names),
                "finding": finding,
                "probability": float(probability),
                "label": None if np.isnan(label) else int(label),
                "group": people[volume.group or volume.name],
            }
            for volume, values, truth in zip(volumes, probabilities, labels, strict=True)
            for finding, probability, label in zip(self.findings, values, truth, strict=True)
        ]
        rows.sort(key=lambda row: 1.0 if row["label"] is None else -abs(row["probability"] - row["label"]))
        rows += [{"case": n, "finding": finding, "note": "no prediction"} for n in missing for finding in self.findings]
        self.output.write_cases(("case", "finding", "probability", "label", "group", "note"), rows)

    def _draw(
        self, probabilities: np.ndarray, labels: np.ndarray, metrics: Mapping[str, Mapping[str, Estimate]]
    ) -> None:
        self.output.clear_panels()
        areas, errors = (
            {name: metrics[metric][name].mean for name in self.findings} for metric in ("auroc", "calibration_error")
        )
        curves = {}
        for number, finding in enumerate(self.findings):
            known = ~np.isnan(labels[:, number])
            curves[finding] = reliability_curve(probabilities[known, number], labels[known, number])
        tensors = torch.from_numpy(probabilities), torch.from_numpy(labels)
        pictures = {
            "roc": draw_roc(*tensors, list(areas.values()), findings=self.findings, title="ROC curves"),
            "calibration": draw_reliability(curves, errors, title="calibration"),
        }
        for name, pixels in pictures.items():
            with replace_file(self.output.panels / f"{name}.png") as temporary:
                imsave(temporary, pixels)


def _common_findings(rows: Sequence[Mapping[str, str]], table: Path, dataset_dir: Path) -> list[str]:
    """The columns that the probabilities and the known findings share.

    Where columns are called `<finding>_probability`, as `predict_classification` calls them, others are no findings.
    """
    known = dataset_dir / "labels.csv" if dataset_dir.is_dir() else dataset_dir
    columns = [list(part[0]) if part else [] for part in (read_table(known), rows)]
    probabilities = {column.removesuffix("_probability") for column in columns[1] if column.endswith("_probability")}
    given = probabilities or set(columns[1])
    found = [column for column in columns[0] if column in given and column not in (*_NO_FINDING, *_SCANS)]
    if not found:
        raise UserError(f"{known} and {table} share no finding: name its column alike in both, and give --findings")
    return found
