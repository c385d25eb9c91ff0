# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""bundle/archive/memory.py: what is remembered of a series gives the records that decoding gives."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom.dataset import Dataset
from pydicom.uid import UID, DeflatedExplicitVRLittleEndian, ExplicitVRBigEndian, ImplicitVRLittleEndian

from bundle.archive.dicom_files import dicom_record
from bundle.archive.memory import Memory
from bundle.archive.records import Record, Salt
from tests.data import dicom_files

SALT = Salt(b"a secret of the test")


class Counting(Memory):
    """Counts what it recalls."""

    recalled = 0

    def recall(self, *arguments: Any) -> Record | None:
        found = super().recall(*arguments)
        self.recalled += found is not None
        return found


def both(files: list[Path]) -> tuple[list[Record], list[Record], int]:
    """The records with a memory and without, and how many were recalled."""
    memory = Counting()
    stamps = [(file.stat().st_size, 1) for file in files]
    with_memory = [dicom_record(file, stamp, SALT, memory) for file, stamp in zip(files, stamps)]
    without = [dicom_record(file, stamp, SALT, None) for file, stamp in zip(files, stamps)]
    return with_memory, without, memory.recalled


def test_of_real_series_nearly_all_headers_are_recalled_and_equal_the_decoded_ones(data_dir: Path) -> None:
    files = sorted(file for file in (data_dir / "dicom").rglob("*") if file.suffix != ".xml" and file.is_file())
    found, expected, recalled = both(files)
    assert found == expected
    assert recalled > 0.8 * len(files) > 100


def write(folder: Path, images: list[Dataset]) -> list[Path]:
    return [Path(file) for file in dicom_files.save(images, folder)]


def series(**tags: Any) -> list[Dataset]:
    stored = dicom_files.planes()
    return [dicom_files.image(stored[k], k, **tags) for k in range(len(stored))]


@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian])
def test_headers_in_other_encodings_have_equal_records(tmp_path: Path, syntax: UID) -> None:
    images = series(AccessionNumber="7")
    for image in images:
        image.file_meta.TransferSyntaxUID = syntax
        if syntax == ExplicitVRBigEndian:
            image.PixelData = np.frombuffer(image.PixelData, "<u2").astype(">u2").tobytes()
    found, expected, _ = both(write(tmp_path, images))
    assert found == expected and all(record.kind == "slice" and record.position for record in found)


def change(images: list[Dataset], kind: str) -> None:
    """Makes the fourth image of a series an unusual one."""
    image = images[3]
    if kind == "no number":
        del image.InstanceNumber
    elif kind == "no position":
        del image.ImagePositionPatient
    elif kind == "no instance":
        del image.SOPInstanceUID
    elif kind == "slope":
        image.RescaleSlope = 2
    elif kind == "table":
        image.ModalityLUTSequence = [Dataset()]
    elif kind == "long header":
        image.add_new(0x00091010, "OB", b"\0" * 20_000)
    elif kind == "patient":
        image.PatientID = "HOSP-4712"
    elif kind == "report":
        image.Modality = "SR"


@pytest.mark.parametrize(
    "kind", ["no number", "no position", "no instance", "slope", "table", "long header", "patient", "report", "nothing"]
)
def test_what_is_unusual_about_a_file_is_seen(tmp_path: Path, kind: str) -> None:
    images = series()
    change(images, kind)
    files = write(tmp_path, images)
    found, expected, recalled = both(files)
    assert found == expected
    assert recalled == (7 if kind == "nothing" else 6)
    assert len({record.header for record in found}) == (
        1 if kind in ("nothing", "no number", "no instance", "long header") else 2
    )


def test_a_file_that_ends_too_early_is_no_copy_of_the_others(tmp_path: Path) -> None:
    files = write(tmp_path, series())
    files[4].write_bytes(files[4].read_bytes()[:-1])
    found, expected, _ = both(files)
    assert found == expected
    faults = [record.header for record in found if "ends before its pixels do" in str(record.header)]
    assert len(faults) == 1


def test_each_salt_has_its_own_digests(tmp_path: Path) -> None:
    (file, *_), memory = write(tmp_path, series()), Memory()
    one, other = (dicom_record(file, (10**6, 1), Salt(key), memory) for key in (b"one secret", b"another secret"))
    assert one.instance != other.instance and one.header != other.header


def test_what_only_looks_like_dicom_is_damaged(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"\0" * 128 + b"DICM" + bytes(range(256)))
    assert dicom_record(tmp_path / "file", (388, 1), SALT).kind in ("damaged", "other")
    (tmp_path / "text").write_text("no DICOM")
    assert dicom_record(tmp_path / "text", (8, 1), SALT).kind == "other"
