# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""The folder of an index."""

from __future__ import annotations

import logging
import os
import shlex
from pathlib import Path

from bundle.archive.update import Update, update_index
from bundle.runs.lock import lock_folder

__all__ = ["IndexFolder"]

logger = logging.getLogger(__name__)


class IndexFolder:
    """A folder with the index of an archive, `index.sqlite`, and what tells of it: `report.html` and `index.json`.

    Args:
        path: of the folder; it is made if it is missing.
        dataset_dir: folder of the archive.
        num_workers: processes that open files.
        salt_file: as for `update_index`.
        hash_names: as for `update_index`.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        dataset_dir: str | os.PathLike[str],
        num_workers: int = 2,
        salt_file: str | os.PathLike[str] | None = None,
        hash_names: bool = False,
    ) -> None:
        self.path, self.dataset_dir = Path(path), Path(dataset_dir)
        self.num_workers, self.salt_file, self.hash_names = num_workers, salt_file, hash_names

    @property
    def index(self) -> Path:
        """The index."""
        return self.path / "index.sqlite"

    @property
    def report(self) -> Path:
        """The page."""
        return self.path / "report.html"

    @property
    def facts(self) -> Path:
        """What the page says, as json."""
        return self.path / "index.json"

    def update(self) -> Update:
        """Makes the index, or brings it up to date."""
        lock_folder(self.path)
        done = update_index(
            self.index,
            self.dataset_dir,
            processes=self.num_workers,
            salt_file=self.salt_file,
            hash_names=self.hash_names,
        )
        logger.info(
            "%d files: %d new or changed, %d gone; %d series or volumes grouped anew",
            done.files,
            done.opened,
            done.removed,
            done.series,
        )
        logger.info("start from it with --dataset_dir %s", shlex.quote(str(self.index)))
        return done
