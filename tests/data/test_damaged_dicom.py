# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""DICOM files whose copy failed: none of them vanishes without a word, and no word names the person."""

from __future__ import annotations

import logging
import warnings
from pathlib import Path

import numpy as np
import pytest
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    MediaStorageDirectoryStorage,
    RLELossless,
)

from bundle.archive import update_index
from bundle.data import find_scans, find_volumes, read_volume
from bundle.data.dicom import find_dicom
from bundle.errors import VolumeError
from tests.data.dicom_files import image, planes, save
from tests.data.test_dicom_values import compressed
from tests.data.volumes import ct_phantom, write_dicom

DAMAGED = ("3 DICOM file(s) that are empty or cut off", "copy them again or remove them")


def cut(root: Path, size: int) -> None:
    """A series, and one whose three files end after `size` bytes."""
    write_dicom(root / "good", ct_phantom((6, 5, 4)), series="1.2.3")
    for file in write_dicom(root / "cut", ct_phantom((3, 12, 12)), series="1.2.4"):
        file.write_bytes(file.read_bytes()[:size])


@pytest.mark.parametrize("size", [0, 131, 150, 200, 300, 400, 500, 600, 700, 800, 900, 1000, 1100])
def test_a_series_of_cut_off_files_is_in_the_report(size: int, tmp_path: Path) -> None:
    cut(tmp_path / "archive", size)
    update_index(tmp_path / "index.sqlite", tmp_path / "archive", processes=0)
    for found in (find_scans(tmp_path / "archive"), find_scans(tmp_path / "index.sqlite")):
        assert {volume.name.split(" ")[0] for volume in found} == {"good", "cut"}
        (broken,) = (volume for volume in found if volume.name.startswith("cut"))
        if not broken.files:
            assert broken.left_out == DAMAGED
        elif not broken.left_out[0]:
            with pytest.raises(VolumeError, match="cannot be read"):
                read_volume(broken.files, broken.name)


def test_the_log_says_how_many_are_missing_from_a_series(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    files = write_dicom(tmp_path, ct_phantom((6, 5, 4)))
    files[-1].write_bytes(b"")
    files[-2].write_bytes(files[-2].read_bytes()[:300])
    (found,) = find_volumes(tmp_path)
    assert len(found.files) == 4
    assert "left out 2 DICOM file(s) that are empty or cut off: copy them again" in caplog.text


def test_the_directory_of_a_cd_is_not_damaged(tmp_path: Path) -> None:
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = MediaStorageDirectoryStorage, "1.2.3"
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    header = FileDataset(str(tmp_path), {}, file_meta=meta, preamble=b"\0" * 128)
    header.FileSetID = "CD"
    header.save_as(tmp_path / "DICOMDIR", enforce_file_format=True)
    assert find_dicom(tmp_path) == ([], {})


def test_damaged_pixels_are_told_without_the_path(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """pydicom warns of them with the path, and logs the traceback of its decoders."""
    images = [image(plane, k) for k, plane in enumerate(planes())]
    for one in images:
        one.compress(RLELossless)
    files = save(images, tmp_path / "Doe^Jane")
    for file in files:
        Path(file).write_bytes(Path(file).read_bytes()[:-40])
    caplog.set_level(logging.DEBUG)
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        (found,) = find_volumes(tmp_path)
        with pytest.raises(VolumeError) as error:
            read_volume(found.files, "series")
    told = [str(error.value), caplog.text, *(str(warning.message) for warning in warned)]
    assert not any("Doe" in text or "Traceback" in text for text in told)


@pytest.mark.parametrize("missing", [1, 300])
def test_compressed_files_that_end_early_are_told_by_the_index_and_by_the_reader(missing: int, tmp_path: Path) -> None:
    stored = planes()
    for name in ("whole", "cut"):
        images = [image(plane, k, SeriesInstanceUID=f"1.2.{len(name)}") for k, plane in enumerate(stored)]
        for one, plane in zip(images, stored):
            one.file_meta.TransferSyntaxUID, content = compressed(plane.astype(np.uint16), "JPEG2000", tmp_path)
            one.PixelData = encapsulate(content)
            one["PixelData"].is_undefined_length = True
        for file in save(images, tmp_path / "archive" / name):
            if name == "cut":
                Path(file).write_bytes(Path(file).read_bytes()[:-missing])
    update_index(tmp_path / "index.sqlite", tmp_path / "archive", processes=0)
    cut, whole = sorted(find_volumes(tmp_path / "index.sqlite"), key=lambda volume: volume.name)
    assert whole.left_out == ("", "") and "a file ends before its pixels do" in cut.left_out[0]
    if missing > 8:  # of the mark alone
        with pytest.raises(VolumeError, match="cannot be read \\(a file ends before its pixels do\\); copy it again"):
            read_volume(cut.files, "cut")


def test_deflated_files_are_whole_for_the_index(tmp_path: Path) -> None:
    images = [image(plane, k) for k, plane in enumerate(planes())]
    for one in images:
        one.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    save(images, tmp_path / "archive")
    update_index(tmp_path / "index.sqlite", tmp_path / "archive", processes=0)
    (found,) = find_volumes(tmp_path / "index.sqlite")
    assert found.left_out == ("", "") and read_volume(found.files, "deflated").shape[0] == 1
