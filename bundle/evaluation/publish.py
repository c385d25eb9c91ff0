# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""What every evaluation ends with: the values in a json, the page, and the last lines of the log."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from bundle.evaluation.folder import EvaluationFolder
from bundle.evaluation.intervals import Estimate
from bundle.evaluation.page import write_page
from bundle.evaluation.summary import summary_table
from bundle.evaluation.tables import write_results

__all__ = ["publish"]

logger = logging.getLogger(__name__)

#: settings that are paths
_PATHS = ("predictions", "dataset_dir")


def publish(
    output: EvaluationFolder,
    *,
    task: str,
    metrics: Mapping[str, Mapping[str, Estimate]],
    higher_is_better: Mapping[str, bool | None],
    settings: Mapping[str, Any],
    notes: Sequence[str],
    lead: str,
    summary: Sequence[Sequence[str]],
    hash_names: bool = False,
    **page: Any,
) -> None:
    """Writes `results.json` and `report.html`, and says in the log what came out and where it is.

    Args:
        output: the folder.
        task: its name.
        metrics: values with intervals by metric and class.
        higher_is_better: by metric; None where neither is.
        settings: of the evaluation.
        notes: what a reader must know of the values.
        lead: of what they are, without a full stop.
        summary: the table to show, its head first.
        hash_names: whether no path is told, as it may name a patient: neither of the settings nor of the command.
        **page: more for `write_page`.
    """
    if hash_names:
        settings = {name: "..." if name in _PATHS else value for name, value in settings.items()}
    write_page(output, lead=f"{lead}.", summary=summary, settings=settings, notes=notes, hash_names=hash_names, **page)
    write_results(
        output.results, task=task, metrics=metrics, higher_is_better=higher_is_better, settings=settings, notes=notes
    )
    output.end()
    for note in notes:
        logger.warning("%s", note)
    logger.info("%s\n%s", lead, summary_table(summary))
    logger.info("report: %s; tables: %s, %s", output.report, output.cases, output.results)
