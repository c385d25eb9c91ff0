# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""Pre-training on a folder that mixes everything: the report says what was taken, what was left out and why."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from pydicom import Dataset
from scipy.ndimage import gaussian_filter

from tests.data.dicom_files import MR, enhanced, image, save
from tests.data.volumes import ct_phantom, ellipsoid, mr_phantom, write_dicom, write_nifti
from tests.tiny_run import train

SIZE = (40, 36, 32)
TILTED = np.array([0, np.cos(0.3), -np.sin(0.3)])


def other_object(folder: Path, modality: str, sop_class: str, *, pixels: bool = False) -> None:
    header = image(
        np.zeros((8, 8)), 0, SOPClassUID=sop_class, Modality=modality, SeriesInstanceUID="1.2.9." + sop_class
    )
    for tag in () if pixels else ("Rows", "Columns", "PixelData", "ImagePositionPatient", "PixelSpacing"):
        delattr(header, tag)
    save([header], folder, modality)


def fill(root: Path) -> None:
    """Scans, masks, and what else lies in a folder of patients."""
    write_nifti(root / "nifti/ct scan.nii.gz", ct_phantom(SIZE))
    latin = os.fsencode(root) + b"/nifti/J\xe9r\xf4me.nii.gz"
    os.rename(write_nifti(root / "nifti/plain.nii.gz", mr_phantom(SIZE)), latin)  # noqa: PTH104 - bytes are no Path
    write_nifti(root / "nifti/labels/ct scan.nii.gz", ellipsoid(SIZE).astype(np.uint8))
    write_nifti(root / "nifti/organ.nii.gz", ellipsoid(SIZE, 0.4).astype(np.int16))
    write_nifti(root / "nifti/liver.nii.gz", gaussian_filter(ellipsoid(SIZE).astype(np.float32), 0.5))
    (root / "nifti/broken.nii.gz").write_bytes(b"no scan")
    write_dicom(root / "hospital/p1/chest", ct_phantom(SIZE), tags={"PatientID": "p1"})
    shutil.copytree(root / "hospital/p1/chest", root / "hospital/p1/chest again")
    phantom = ct_phantom(SIZE) + 1024
    head = {"PatientID": "p2", "SeriesInstanceUID": "1.2.8"}
    save([image(phantom[:, :, k], k, column=TILTED, **head) for k in range(32)], root / "hospital/p2/head")
    places = [np.array([0, 0, 3.0 * k]) for k in range(32)]
    volume = enhanced(mr_phantom(SIZE).clip(0).transpose(2, 1, 0), places)
    volume.PatientID, volume.SeriesInstanceUID = "p3", "1.2.7"
    volume.Rows, volume.Columns = SIZE[1], SIZE[0]
    save([volume], root / "hospital/p3/enhanced")
    other_object(root / "hospital/p1", "RTSTRUCT", "1.2.840.10008.5.1.4.1.1.481.3")
    other_object(root / "hospital/p1", "SR", "1.2.840.10008.5.1.4.1.1.88.22")
    other_object(root / "hospital/p2", "SR", "1.2.840.10008.5.1.4.1.1.88.22")
    other_object(root / "hospital/p3", "SEG", "1.2.840.10008.5.1.4.1.1.66.4", pixels=True)
    (root / "hospital/report.pdf").write_bytes(b"%PDF-1.4")
    (root / "hospital/p2/moved").symlink_to(root / "archive/moved")
    index = Dataset()  # of a CD: no modality, so no line
    index.file_meta, index.FileSetID = image(np.zeros((2, 2)), 0).file_meta, "CD"
    index.save_as(root / "hospital/DICOMDIR", enforce_file_format=True)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("mixed")
    fill(folder / "data/volumes")
    before = os.umask(0o077)
    try:
        return train(folder, epochs=1, steps_per_epoch=1, spacing=None, val_fraction=0)
    finally:
        os.umask(before)


@pytest.fixture(scope="module")
def summary(run: Path) -> str:
    return (run / "summary.md").read_text()


TAKEN = [
    "hospital/p1/chest",
    "hospital/p2/head",
    "hospital/p3/enhanced",
    "nifti/J\\udce9r\\udcf4me.nii.gz",
    "nifti/ct scan.nii.gz",
]
LEFT = {
    "hospital/p1/chest again": "holds copies of the DICOM images in hospital/p1/chest; remove one of the two folders",
    "hospital/p1 (RTSTRUCT)": "1 DICOM file(s) with no image of CT or MR; nothing is to be done",
    "hospital/p1 (SR)": "2 DICOM file(s) with no image of CT or MR, some in 1 other folder(s); nothing is to be done",
    "hospital/p3 (SEG)": "1 DICOM file(s) with no image of CT or MR; nothing is to be done",
    "hospital/p2/moved (unreadable)": "1 file(s), folder(s) or link(s) that cannot be opened; correct their ",
    "nifti/broken.nii.gz": "cannot be read (",
    "nifti/labels/ct scan.nii.gz": "lies in a folder of label maps (labels): no scan; ",
    "nifti/liver.nii.gz": "looks like a map of probabilities: from 0 to 1, on the grid of another file near it; ",
    "nifti/organ.nii.gz": "looks like a label map: few whole numbers, on the grid of another file near it; ",
}


def test_the_report_says_what_was_taken(summary: str) -> None:
    assert f"- training: 5 volumes (3 CT, 2 MR)\n  - {', '.join(TAKEN)}\n" in summary


def test_the_report_says_what_was_left_out_and_why_and_nothing_else(summary: str) -> None:
    lines = re.search(r"- not used: (\d+)\n((?:  - .*\n)+)", summary)
    assert lines is not None and int(lines[1]) == len(LEFT)
    said = [line.removeprefix("  - ") for line in lines[2].splitlines()]
    assert len(said) == len(LEFT)
    for line, (name, reason) in zip(said, sorted(LEFT.items())):
        assert line.startswith(f"{name}: {reason}"), line


def test_the_report_says_what_was_resampled(summary: str) -> None:
    tilt = "slices are tilted against the long axis, resampled onto a grid with right angles"
    assert f"- used in part or resampled: 1\n  - hospital/p2/head: {tilt}\n" in summary


def test_nobody_else_may_read_what_a_run_writes_where_the_users_umask_says_so(run: Path) -> None:
    written = [file for folder in run.parents[1].iterdir() if folder.name != "data" for file in folder.rglob("*")]
    assert len(written) > 10 and not [str(file) for file in written if file.stat().st_mode & 0o077]


def test_the_report_names_no_patient(summary: str) -> None:
    assert "Doe" not in summary and "HOSP" not in summary and MR not in summary
