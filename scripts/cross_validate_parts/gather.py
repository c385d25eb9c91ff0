# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""Puts together what each fold says of the scans that it was not trained on."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from cross_validate_parts.out_of_fold import evaluate_out_of_fold, find_validated, predict_out_of_fold
from cross_validate_parts.plan import ROOT, Plan, given_options
from cross_validate_parts.same_scans import check_folds, check_once, check_scans

from bundle.atomic import replace_file
from bundle.data import table_row
from bundle.evaluation import EvaluationFolder, read_table
from bundle.tasks.classification import ClassificationEvaluation
from bundle.tasks.detection import DetectionEvaluation

__all__ = ["gather"]

PREDICT = ROOT / "configs/predict_segmentation.yaml"


def gather(plan: Plan) -> None:
    """Puts the results of the folds together.

    Raises:
        UserError: if they are of different scans.
    """
    done = [fold for fold in range(plan.folds) if plan.is_done(fold)]
    if not done:
        return
    check_scans(plan)
    check_folds(plan)
    about = json.loads(plan.folder(done[0]).model_files.settings.read_text())
    tasks = {"segmentation": gather_label_maps, "classification": gather_probabilities, "detection": gather_boxes}
    tasks[about["task"]](plan, done, about)


def gather_label_maps(plan: Plan, done: Sequence[int], about: Mapping[str, Any]) -> None:
    """Segments each scan with the fold that was not trained on it, and evaluates that on the files' grids."""
    given = {name: yaml.safe_load(value) for name, value in given_options(plan.overrides).items()}
    options = {"bundle_root": str(ROOT), "dataset_dir": plan.dataset_dir}
    options |= {name: given[name] for name in ("device", "amp", "num_workers") if name in given}
    files: dict[str, Path] = {}
    pairs: list[tuple[str, int]] = []
    for fold, scans in find_validated(plan, done).items():
        print(f"fold {fold}: {len(scans)} scans that it was not trained on")
        output = plan.output / "predictions" / f"fold_{fold}"
        found = predict_out_of_fold(PREDICT, plan.folder(fold).path, scans, output, options=options)
        pairs += [(name, fold) for name in found]
        files |= found
    if files:
        evaluate_out_of_fold(files, plan.dataset_dir, plan.output, classes=about["classes"], hashed=plan.hashes_names)
    _note_folds(plan, pairs)


def gather_probabilities(plan: Plan, done: Sequence[int], about: Mapping[str, Any]) -> None:
    """Puts the tables of probabilities together, and evaluates them."""
    rows = [row for fold in done for row in _rows(plan, fold, "predictions.csv")]
    check_once(plan, [(row["volume"], row["fold"]) for row in rows])
    _write(plan.output / "predictions.csv", rows)
    ClassificationEvaluation(
        predictions=plan.output / "predictions.csv",
        dataset_dir=plan.dataset_dir,
        output=EvaluationFolder(plan.output, overwrite=True),
        findings=about["findings"],
        part="",
        hash_names=plan.hashes_names,
    ).run()
    _note_folds(plan, [(row["volume"], row["fold"]) for row in rows])


def gather_boxes(plan: Plan, done: Sequence[int], about: Mapping[str, Any]) -> None:
    """Puts the boxes together, and evaluates them."""
    found = [
        (fold, one)
        for fold in done
        for one in json.loads((plan.folder(fold).path / "boxes.json").read_text())["validation"]
    ]
    check_once(plan, [(one["image"], fold) for fold, one in found])
    file = plan.output / "predicted_boxes.json"
    with replace_file(file) as temporary:
        temporary.write_text(json.dumps({"validation": [one for _, one in found]}, indent=1) + "\n")
    DetectionEvaluation(
        predictions=file,
        dataset_dir=plan.dataset_dir,
        output=EvaluationFolder(plan.output, overwrite=True),
        classes=about["classes"],
        part="",
        hash_names=plan.hashes_names,
    ).run()
    _note_folds(plan, [(one["image"], fold) for fold, one in found])


def _note_folds(plan: Plan, pairs: Sequence[tuple[str, int]]) -> None:
    """Writes which fold each scan is of."""
    _write(plan.output / "folds.csv", [{"case": name, "fold": fold} for name, fold in sorted(pairs)])


def _rows(plan: Plan, fold: int, name: str) -> list[dict[str, Any]]:
    file = plan.folder(fold).path / name
    if not file.is_file():
        return []
    return [{**row, "fold": fold} for row in read_table(file)]


def _write(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    columns = list(dict.fromkeys(name for row in rows for name in row))
    with replace_file(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(table_row(columns))
        table.writerows(table_row([row.get(name, "") for name in columns]) for row in rows)
