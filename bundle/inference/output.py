# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""Where inference writes."""

from __future__ import annotations

import csv
import os
from pathlib import Path

from bundle.data.safe_names import cell_text
from bundle.errors import UserError
from bundle.runs.lock import lock_folder

__all__ = ["OutputFolder"]


class OutputFolder:
    """A folder of results, and what lies where in it.

    Args:
        path: the folder. This process takes it until it ends.
        overwrite: whether it may hold results already; those of the same names are then replaced.

    Raises:
        UserError: if it holds results and may not, or another process writes there.
    """

    def __init__(self, path: str | os.PathLike[str] | None, *, overwrite: bool = False) -> None:
        if path is None:
            raise UserError("--output_dir is missing: give the folder to write to")
        self.path = Path(path)
        if self.path.exists() and not self.path.is_dir():
            raise UserError(f"--output_dir {path} is a file: give a folder")
        if not overwrite:
            self._check()
        lock_folder(self.path)
        if not overwrite:
            self._check()  # now nobody else writes there

    def _check(self) -> None:
        results = (self.manifest, self.about, self.path / "embeddings", self.path / "feature_maps")
        if old := [result.name for result in results if result.exists()]:
            raise UserError(
                f"--output_dir {self.path} already holds {', '.join(old)}: give another folder, or --overwrite True"
            )

    def written(self) -> list[Path]:
        """The files that the table says were written."""
        try:
            with self.manifest.open(newline="") as file:
                rows = list(csv.DictReader(file))
        except OSError:
            return []
        names = [cell_text(row.get(column) or "") for row in rows for column in ("file", "feature_map")]
        return [self.path / name for name in names if name]

    @property
    def manifest(self) -> Path:
        """The table of volumes."""
        return self.path / "manifest.csv"

    @property
    def about(self) -> Path:
        """Which weights and settings the results were made with."""
        return self.path / "about.json"

    def embedding(self, name: str) -> Path:
        """The file of a volume's embedding."""
        return self.path / "embeddings" / f"{name}.npz"

    def feature_map(self, name: str) -> Path:
        """The file of a volume's feature map."""
        return self.path / "feature_maps" / f"{name}.nii.gz"
