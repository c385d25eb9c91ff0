# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""What the reader left out or resampled reaches the log and the prepared volume, from the cache as well."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest

from bundle.data import VolumeSet
from tests.data.dicom_files import COLUMN, image, save
from tests.data.volumes import ct_phantom, preparation, write_dicom

TILTED = np.array([0, np.cos(0.3), -np.sin(0.3)])
TILT = "slices are tilted against the long axis, resampled onto a grid with right angles"


def write_series(folder: Path, column: np.ndarray, copies: tuple[int, ...] = ()) -> None:
    phantom = ct_phantom((16, 20, 24)) + 1024
    save([image(phantom[k], k, column=column, PatientID=folder.name) for k in (*range(16), *copies)], folder)


@pytest.mark.parametrize("hashed", [False, True])
def test_notes_are_logged_at_each_start_and_kept_with_the_volume(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, hashed: bool
) -> None:
    write_series(tmp_path / "scans/head", TILTED, copies=(3,))
    write_series(tmp_path / "scans/chest", COLUMN)
    note = f"1 image(s) left out: equal copies of a slice; {TILT}"
    for _ in range(2):  # the second time from the cache
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            volumes = VolumeSet(
                dataset_dir=tmp_path / "scans",
                transform=preparation(),
                cache_dir=tmp_path / "cache",
                val_fraction=0.5,
                hash_names=hashed,
                workers=0,
            )
        notes = {volume.name: volume.notes for volume in (*volumes.training, *volumes.validation)}
        assert sorted(notes.values()) == ["", note]
        (name,) = [name for name, text in notes.items() if text]
        assert (name == "head") == (not hashed)
        assert [r.getMessage() for r in caplog.records if TILT in r.getMessage()] == [f"{name}: {note}"]
        (head,) = [v for v in (*volumes.training, *volumes.validation) if v.notes]
        assert "notes" not in head.load()


def test_volume_that_was_read_as_it_is_has_no_notes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_dicom(tmp_path / name, ct_phantom((16, 20, 24)), tags={"PatientID": name})
    volumes = VolumeSet(
        dataset_dir=tmp_path, transform=preparation(), cache_dir=tmp_path / "cache", val_fraction=0.5, workers=0
    )
    assert [volume.notes for volume in (*volumes.training, *volumes.validation)] == ["", ""]
