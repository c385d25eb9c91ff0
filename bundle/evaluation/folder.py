# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""Where an evaluation writes."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from bundle.errors import UserError
from bundle.evaluation.tables import write_table

__all__ = ["EvaluationFolder"]


class EvaluationFolder:
    """A folder of one evaluation, and what lies where in it.

    What an interrupted evaluation has left there is replaced: the file `.unfinished` tells it until `end`.

    Args:
        path: the folder.
        overwrite: whether it may hold an evaluation already, which is then replaced.

    Raises:
        UserError: if it holds one and may not.
    """

    def __init__(self, path: str | os.PathLike[str] | None, *, overwrite: bool = False) -> None:
        if path is None:
            raise UserError("--output_dir is missing: give a folder for the tables and pictures")
        self.path, self.overwrite = Path(path), overwrite
        if self.path.exists() and not self.path.is_dir():
            raise UserError(f"--output_dir {path} is a file: give a folder")
        old = [file.name for file in (self.results, self.cases) if file.exists()]
        if old and not overwrite and not self._unfinished.exists():
            raise UserError(
                f"--output_dir {path} already holds {', '.join(old)}: give another folder, or --overwrite True"
            )

    @property
    def _unfinished(self) -> Path:
        return self.path / ".unfinished"

    def write_cases(self, columns: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> None:
        """Writes `cases.csv`, the first file of an evaluation, as `write_table` does."""
        self.path.mkdir(parents=True, exist_ok=True)
        self._unfinished.touch()
        write_table(self.cases, columns, rows)

    def end(self) -> None:
        """To be called when all files are written."""
        self._unfinished.unlink(missing_ok=True)

    @property
    def cases(self) -> Path:
        """The table with a row, or several, for each case."""
        return self.path / "cases.csv"

    @property
    def results(self) -> Path:
        """The means and their intervals."""
        return self.path / "results.json"

    @property
    def report(self) -> Path:
        """The page."""
        return self.path / "report.html"

    @property
    def panels(self) -> Path:
        """Folder of the pictures."""
        return self.path / "panels"

    @property
    def predictions(self) -> Path:
        """Folder of the predictions of a model that is evaluated."""
        return self.path / "predictions"

    def clear_panels(self) -> None:
        """Removes the pictures of an earlier evaluation, which may show other cases."""
        for file in self.panels.glob("*.png"):
            file.unlink()
