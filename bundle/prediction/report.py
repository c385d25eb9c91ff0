# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""The page of a prediction that is told by its tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bundle.prediction.fine_tuned import FineTuned
from bundle.prediction.folder import PredictionFolder
from bundle.reports import Report

__all__ = ["TableReport"]


class TableReport:
    """Writes `report.html`: what was predicted of each scan, what was skipped, the models and the settings.

    Args:
        output: the folder.
        fine_tuned: the models.
        title: of the page.
        columns: of `predictions.csv` to show.
        table: of the further tables, the one to show; "" for none.
        table_columns: of it.
    """

    def __init__(
        self,
        output: PredictionFolder,
        *,
        fine_tuned: FineTuned,
        title: str,
        columns: Sequence[str],
        table: str = "",
        table_columns: Sequence[str] = (),
    ) -> None:
        self.output, self.fine_tuned, self.title = output, fine_tuned, title
        self.columns, self.table, self.table_columns = list(columns), table, list(table_columns)

    def __call__(self, records: Mapping[str, Mapping[str, Any]], skipped: Mapping[str, tuple[str, str]]) -> Path:
        """Writes the page and gives its path.

        Args:
            records: of the scans that are done, by name, as `PredictionFolder.done` got them.
            skipped: by the name of a scan, what is wrong with it and what to do.
        """
        lead = f"{len(records)} scans done, {len(skipped)} skipped. Not for diagnosis."
        report = Report(self.title, lead=lead, hide_values=bool(self.output.settings.get("hash_names")))
        rows = [[name, *(record["row"].get(column, "") for column in self.columns)] for name, record in records.items()]
        report.section("Scans").table(["scan", *self.columns], sorted(rows), file="predictions.csv")
        if self.table:
            found = [
                [name, *(row[column] for column in self.table_columns)]
                for name in sorted(records)
                for row in records[name]["tables"].get(self.table, [])
            ]
            title = self.table.capitalize()
            report.section(title).table(["scan", *self.table_columns], found, file=f"{self.table}.csv")
        if skipped:
            lines = [[name, *skipped[name]] for name in sorted(skipped)]
            report.section("Skipped").table(["scan", "why", "what to do"], lines)
        facts = {key: value for key, value in self.output.settings.items() if key != "models"}
        models = {f"model {number}": sha256 for number, sha256 in enumerate(self.fine_tuned.sha256, 1)}
        report.section("Models and settings", folded=True).facts({**models, **facts})
        return report.write(self.output.path / "report.html")
