# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""Nothing that names a patient, in a DICOM header or file name, reaches a log, cache, checkpoint, picture or table."""

from __future__ import annotations

import gzip
import os
import zipfile
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

from tests.commands import run_python

ROOT = Path(__file__).parents[1]
MARK = "Zyxwqvutsr"  # in the value of each attribute
TEXTS = [
    "PatientName",
    "PatientComments",
    "PatientAddress",
    "PatientBirthName",
    "PatientMotherBirthName",
    "OtherPatientNames",
    "OtherPatientIDs",
    "PatientID",
    "PatientTelephoneNumbers",
    "EthnicGroup",
    "Occupation",
    "AdditionalPatientHistory",
    "MilitaryRank",
    "InstitutionName",
    "InstitutionAddress",
    "InstitutionalDepartmentName",
    "StationName",
    "ReferringPhysicianName",
    "PerformingPhysicianName",
    "OperatorsName",
    "NameOfPhysiciansReadingStudy",
    "RequestingPhysician",
    "AccessionNumber",
    "StudyID",
    "StudyDescription",
    "SeriesDescription",
    "ProtocolName",
    "ImageComments",
    "DeviceSerialNumber",
    "RequestedProcedureDescription",
]
DATES = {
    "PatientBirthDate": "19310217",
    "StudyDate": "20010918",
    "SeriesDate": "20010919",
    "AcquisitionDate": "20010920",
}


def write_series(folder: Path, seed: int) -> list[bytes]:
    """A small CT series with a body in it, and a header full of names; returns what must not be found again."""
    folder.mkdir(parents=True)
    random, uids = np.random.default_rng(seed), [str(generate_uid()) for _ in range(3)]
    uids[0] = f"1.2.0840.01.{seed + 19310217}.77"  # not valid, as old scanners write them: pydicom would warn of it
    for index in range(48):
        header = pydicom.Dataset()
        for number, keyword in enumerate(TEXTS):
            setattr(header, keyword, f"{MARK}{number}{'ab'[seed]}")  # two patients
        for keyword, date in DATES.items():
            setattr(header, keyword, date)
        header.SOPClassUID, header.Modality, header.SOPInstanceUID = CTImageStorage, "CT", generate_uid()
        with pydicom.config.disable_value_validation():
            header.StudyInstanceUID, header.SeriesInstanceUID, header.FrameOfReferenceUID = uids
        header.Rows, header.Columns, header.BitsAllocated, header.BitsStored, header.HighBit = 48, 48, 16, 16, 15
        header.PixelRepresentation, header.SamplesPerPixel, header.PhotometricInterpretation = 1, 1, "MONOCHROME2"
        header.PixelSpacing, header.SliceThickness = [4.0, 4.0], 4.0
        header.ImageOrientationPatient, header.ImagePositionPatient = [1, 0, 0, 0, 1, 0], [0, 0, 4.0 * index]
        header.RescaleSlope, header.RescaleIntercept, header.InstanceNumber = 1, 0, index + 1
        pixels = np.full((48, 48), -1000, np.int16)
        pixels[6:42, 6:42] = random.normal(40, 60, (36, 36))
        header.PixelData = pixels.tobytes()
        header.file_meta = pydicom.dataset.FileMetaDataset()
        header.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        with pydicom.config.disable_value_validation():
            header.save_as(folder / f"{index:03d}.dcm", enforce_file_format=True)
    return [MARK.encode(), *(date.encode() for date in DATES.values()), *(uid.encode() for uid in uids)]


def contents(file: Path) -> Iterator[bytes]:
    """A file's path and its bytes, and what is packed in it."""
    raw = file.read_bytes()
    yield os.fsencode(file)
    yield raw
    if raw[:2] == b"\x1f\x8b":
        yield gzip.decompress(raw)
    if zipfile.is_zipfile(BytesIO(raw)):
        with zipfile.ZipFile(BytesIO(raw)) as archive:
            for name in archive.namelist():
                yield name.encode()
                yield archive.read(name)


def leaks(folder: Path, secrets: list[bytes]) -> list[str]:
    files = [file for file in folder.rglob("*") if file.is_file()]
    return [f"{f.name}: {s!r}" for f in files for part in contents(f) for s in secrets if s.lower() in part.lower()]


def command(*arguments: object, log: Path) -> None:
    done = run_python("-m", "monai.bundle", "run", *arguments, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr[-3000:]
    log.write_text(done.stdout + done.stderr)


@pytest.fixture(scope="module")
def series(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[bytes]]:
    folder = tmp_path_factory.mktemp("volumes")
    secrets = [secret for number in range(2) for secret in write_series(folder / f"{MARK} {number}/a", number)]
    (folder / f"{MARK} broken.nii.gz").write_bytes(b"no volume")
    return folder, secrets


def test_no_run_leaves_a_name_or_anything_of_a_header(series: tuple[Path, list[bytes]], tmp_path: Path):
    volumes, secrets = series
    assert leaks(volumes, secrets), "the headers hold what is looked for"
    tiny = ["--device", "cpu", "--spacing", "[4, 4, 4]", "--epochs", 1, "--steps_per_epoch", 2, "--warmup_epochs", 0.5]
    command(
        "training", "--config_file", "['configs/train.yaml','configs/preset_dev.yaml']", "--bundle_root", tmp_path,
        "--dataset_dir", volumes, "--encoder#init_filters", 4, "--replace_model", True,
        "--hash_names", True, *tiny, log=tmp_path / "training.log",
    )  # fmt: skip
    command(
        "--config_file", "configs/inference.yaml", "--bundle_root", tmp_path, "--dataset_dir", volumes,
        "--output_dir", tmp_path / "eval", "--device", "cpu", "--num_workers", 0, "--feature_maps", True,
        "--hash_names", True, log=tmp_path / "inference.log",
    )  # fmt: skip
    command(
        "--config_file", "configs/reconstruct.yaml", "--bundle_root", tmp_path, "--dataset_dir", volumes,
        "--device", "cpu", "--hash_names", True, log=tmp_path / "reconstruct.log",
    )  # fmt: skip
    names = {file.name for file in tmp_path.rglob("*") if file.is_file()}
    assert {"model.pt", "last.pt", "summary.md", "config.yaml", "manifest.csv", "epoch_0001.png", "errors.csv"} <= names
    assert len(list((tmp_path / ".cache/volumes").glob("*.b2v"))) == 2
    assert leaks(tmp_path, secrets) == []


def test_the_search_looks_into_names_and_packed_files(tmp_path: Path):
    secret = MARK.encode()
    (tmp_path / f"{MARK}.txt").write_text("")
    (tmp_path / "a.nii.gz").write_bytes(gzip.compress(b"x" * 50 + secret + b"y" * 50))
    with zipfile.ZipFile(tmp_path / "b.pt", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("data.pkl", secret * 3)
    (tmp_path / "clean.txt").write_text("nothing")
    assert {leak.split(":")[0] for leak in leaks(tmp_path, [secret])} == {f"{MARK}.txt", "a.nii.gz", "b.pt"}
