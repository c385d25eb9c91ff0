# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""Where predictions are written, and which of them are there already."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bundle.atomic import replace_file
from bundle.data import FoundVolume
from bundle.errors import UserError
from bundle.runs.lock import lock_folder

__all__ = ["PredictionFolder", "Predictions"]

_RECORDS = ".done"


class Predictions:
    """A folder of predictions, to read.

    `about.json` says with which models and settings they were made, and `.done/<name>.json` what was written of each
    scan. A record is written last and in one piece: a scan that a kill has interrupted has none.

    Args:
        path: the folder.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)

    @property
    def about(self) -> Path:
        """Which models and settings the predictions were made with."""
        return self.path / "about.json"

    @property
    def table(self) -> Path:
        """A row for each scan."""
        return self.path / "predictions.csv"

    def label_map(self, name: str) -> Path:
        """The file of a scan's label map."""
        return self.path / "label_maps" / f"{name}.nii.gz"

    def probabilities(self, name: str) -> Path:
        """The file of a scan's probabilities."""
        return self.path / "probabilities" / f"{name}.nii.gz"

    def dicom_seg(self, name: str) -> Path:
        """The file of a scan's DICOM SEG."""
        return self.path / "dicom_seg" / f"{name}.dcm"

    def markups(self, name: str) -> Path:
        """The file of a scan's boxes for 3D Slicer."""
        return self.path / "markups" / f"{name}.mrk.json"

    def files(self, name: str) -> list[Path]:
        """All that may be written under a scan's name."""
        written = (self.label_map, self.probabilities, self.dicom_seg, self.markups, self._record)
        return [file(name) for file in written]

    def read_settings(self) -> dict[str, Any]:
        """The models and settings that the predictions were made with.

        Raises:
            UserError: if the folder does not tell them.
        """
        try:
            return dict(json.loads(self.about.read_text())["settings"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(f"{self.about} tells nothing of predictions: give a folder that a prediction has written"
                            ) from error  # fmt: skip

    def records(self) -> dict[str, dict[str, Any]]:
        """What `PredictionFolder.done` was given, by the names of the scans."""
        folder = self.path / _RECORDS
        files = {str(file.relative_to(folder))[: -len(".json")]: file for file in sorted(folder.rglob("*.json"))}
        found = {name: _read(file) for name, file in files.items()}
        return {name: record for name, record in found.items() if record is not None}

    def written(self) -> list[Path]:
        """The files of all scans that were done."""
        return [self.path / file for record in self.records().values() for file in record["files"]]

    def is_of(self, scan: FoundVolume) -> bool | None:
        """Whether what was predicted under a scan's name is of its files as they are now; None if nothing was."""
        record = _read(self._record(scan.name))
        return None if record is None else bool(record["stamp"] == _stamp(scan))

    def _record(self, name: str) -> Path:
        return self.path / _RECORDS / f"{name}.json"


class PredictionFolder(Predictions):
    """A folder of predictions that a second run of the same command completes.

    A scan that has no record in the folder is done again.

    Args:
        path: the folder. This process takes it until it ends.
        settings: the models' sha256 and all settings that change a prediction.
        overwrite: whether predictions with other models, settings or scans may be replaced; then all are made again,
            and the files of the old ones removed. "others": that is done only where they are of others.

    Raises:
        UserError: if it holds something else, predictions of other models or settings, or another process writes there.
    """

    def __init__(
        self, path: str | os.PathLike[str] | None, *, settings: Mapping[str, Any], overwrite: bool | str = False
    ) -> None:
        if path is None:
            raise UserError("--output_dir is missing: give the folder to write to")
        super().__init__(path)
        self._replaces_others = overwrite == "others"
        self.overwrite = bool(overwrite) and not self._replaces_others
        if self.path.exists() and not self.path.is_dir():
            raise UserError(f"--output_dir {path} is a file: give a folder")
        self.settings: dict[str, Any] = json.loads(json.dumps(dict(settings), default=str))
        if not overwrite:
            self._check()
        elif self._replaces_others:
            try:
                self._check()
            except UserError:
                self.overwrite = True
        lock_folder(self.path)

    def _check(self) -> None:
        remedy = "give another --output_dir, or --overwrite True to predict all again"
        if not self.about.is_file():
            names = ("label_maps", "probabilities", "predictions.csv", "manifest.csv", "boxes.csv", _RECORDS)
            if old := [name for name in names if (self.path / name).exists()]:
                raise UserError(f"--output_dir {self.path} already holds {old[0]}, of another program: {remedy}")
            return
        try:
            before = self.read_settings()
        except UserError as error:
            raise UserError(f"{self.about} tells nothing of predictions: {remedy}") from error
        for key in [*self.settings, *before]:
            if self.settings.get(key) != before.get(key):
                values = f"{before.get(key)}, not {self.settings.get(key)}"
                raise UserError(f"--output_dir {self.path} holds predictions with {key} {values}: {remedy}")

    def pending(self, scans: Sequence[FoundVolume]) -> list[FoundVolume]:
        """Those of the scans that are not done.

        Raises:
            UserError: if a scan was done whose files were others.
        """
        return [scan for scan in scans if self.overwrite or not self._is_done(scan)]

    def _is_done(self, scan: FoundVolume) -> bool:
        record = _read(self._record(scan.name))
        if record is None or not all((self.path / file).is_file() for file in record["files"]):
            return False
        if not self.is_of(scan):
            if self._replaces_others:
                return False
            raise UserError(
                f'--output_dir {self.path} holds a prediction of "{scan.name}" from files that were others or have '
                "changed: give another --output_dir, or --overwrite True to predict all again"
            )
        return True

    def begin(self) -> None:
        """Writes `about.json`; with `overwrite`, first removes what was done."""
        if self.overwrite:
            for record in self.records().values():
                for name in record["files"]:
                    file = (self.path / name).resolve()
                    if file.is_relative_to(self.path.resolve()):
                        file.unlink(missing_ok=True)
            shutil.rmtree(self.path / _RECORDS, ignore_errors=True)
            self.overwrite = False
        with replace_file(self.about) as temporary:
            temporary.write_text(json.dumps({"settings": self.settings}, indent=4) + "\n")

    def done(self, scan: FoundVolume, record: Mapping[str, Any]) -> None:
        """Notes that a scan is done; call it when all its files are written.

        Args:
            scan: which.
            record: `files`, a list of paths below this folder, and what else is to be read again, as json.
        """
        with replace_file(self._record(scan.name)) as temporary:
            temporary.write_text(json.dumps({**record, "stamp": _stamp(scan)}, default=str))


def _read(file: Path) -> dict[str, Any] | None:
    """A record; None where there is none, or one that tells nothing."""
    try:
        record = json.loads(file.read_text())
    except (OSError, ValueError):
        return None
    whole = isinstance(record, dict) and isinstance(record.get("files"), list) and "stamp" in record
    return record if whole else None


def _stamp(scan: FoundVolume) -> str:
    """Of a scan's files: paths, sizes and times of change, as a digest that names nobody."""
    files = [Path(file).absolute() for file in (*scan.files, *(file for files in scan.channels for file in files))]
    stats = [(str(file), file.stat()) for file in files if file.exists()]
    facts = [(name, stat.st_size, stat.st_mtime_ns) for name, stat in stats]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()
