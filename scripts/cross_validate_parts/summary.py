# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""The page on all folds: `summary.md` and `report.html`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from cross_validate_parts.plan import Plan

from bundle.atomic import replace_file
from bundle.evaluation import read_results
from bundle.reports import Report
from bundle.training.history import read_history

__all__ = ["per_fold", "summarise"]


#: what may lie in the folder, and what it is
_FILES = {
    "label_maps": "each scan as the fold segments it that was not trained on it",
    "cases.csv": "a row for each scan, from the fold that was not trained on it",
    "results.json": "means and intervals of these",
    "panels": "pictures",
    "folds.csv": "which fold each scan is of",
    "predictions.csv": "probabilities of each scan, likewise",
    "predicted_boxes.json": "boxes of each scan, likewise",
    "boxes.csv": "found, missed and false boxes",
    "logs": "what the trainings said",
}


def per_fold(plan: Plan) -> list[dict[str, Any]]:
    """The metrics of each fold that is done, at the epoch whose weights are its model."""
    rows = []
    for fold in filter(plan.is_done, range(plan.folds)):
        folder = plan.folder(fold)
        about = json.loads(folder.model_files.settings.read_text())
        history = {row["epoch"]: row for row in read_history(folder.history)}
        row = history.get(about["epoch"], {})
        counts = {part: sum(about["volumes"][part].values()) for part in ("training", "validation")}
        rows.append({"fold": fold, **counts, "epoch": about["epoch"],
                     **{name: value for name, value in row.items() if name.startswith("validation/")}})  # fmt: skip
    return rows


def summarise(plan: Plan, failed: Mapping[int, str]) -> str:
    """Writes `summary.md` and `report.html`; gives the former."""
    rows = per_fold(plan)
    said = [f"fold {fold} failed: {words} ({plan.log(fold)})" for fold, words in failed.items()]
    lead = f"{len(rows)} of {plan.folds} folds are done."
    sections = [
        ("Each fold, on the scans it was not trained on", _fold_table(rows),
         ["The epoch was chosen on these scans, so the figures are somewhat too good."]),
        ("All scans, each from the fold that was not trained on it", *_estimates(plan)),
    ]  # fmt: skip
    files = {"folds": "the run of each fold; together they are an ensemble for predict", **_FILES}
    where = [f"`{plan.output / name}`: {what}" for name, what in files.items() if (plan.output / name).exists()]
    if len(rows) < plan.folds:
        where.append(f"to go on: the same command again, with --output_dir {plan.output}")
    lines, report = (
        ["# Cross-validation", "", lead, "", *(f"- {line}" for line in said)],
        Report("Cross-validation", lead=lead),
    )
    if said:
        report.section("To be noted").bullets(said)
    for title, table, remarks in sections:
        if len(table) < 2:
            continue
        lines += [
            "",
            f"## {title}",
            "",
            *(f"| {' | '.join(row)} |" for row in (table[0], ["---"] * len(table[0]), *table[1:])),
        ]
        lines += ["", *(f"- {remark}" for remark in remarks)]
        section = report.section(title).table(table[0], table[1:]).bullets(remarks)
        if table is sections[-1][1]:
            for picture in sorted((plan.output / "panels").glob("*.png")):
                section.picture(picture, caption=f"{picture.stem}: reference solid, prediction dashed")
    report.section("Where it is").bullets(where)
    lines += ["", "## Where it is", "", *(f"- {line}" for line in where), ""]
    with replace_file(plan.output / "summary.md") as temporary:
        temporary.write_text("\n".join(lines))
    report.write(plan.output / "report.html")
    return "\n".join(lines)


def _fold_table(rows: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """The heading, a row for each fold, and their means."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    means = {
        name: sum(row[name] for row in rows) / len(rows)
        for name in columns
        if name.startswith("validation/") and all(name in row for row in rows)
    }
    table = [columns, *([_shown(row.get(name, "")) for name in columns] for row in rows)]
    return [*table, ["mean", *(_shown(means.get(name, "")) for name in columns[1:])]] if rows else []


def _estimates(plan: Plan) -> tuple[list[list[str]], list[str]]:
    """Means and intervals over all scans, as `results.json` has them, and what is to be noted of them."""
    file = plan.output / "results.json"
    if not file.is_file():
        return [], []
    content = read_results(file)
    table = [["metric", "class", "mean", "95 % interval", "scans"]]
    for metric, classes in content["metrics"].items():
        for name, one in classes.items():
            mean, low, high = (_shown(one[key]) if one[key] is not None else "-" for key in ("mean", "low", "high"))
            table.append([metric, name, mean, f"{low} to {high}", str(one["n"])])
    return table, list(content.get("notes", []))


def _shown(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
