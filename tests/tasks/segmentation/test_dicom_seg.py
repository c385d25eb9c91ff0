# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""DICOM SEG: the voxels and their places, the references, and what of the patient is in it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import highdicom
import numpy as np
import pydicom
import pytest
import torch
from monai.data import MetaTensor
from pydicom.dataset import Dataset

from bundle.data import FoundVolume
from bundle.data.dicom import find_series, read_series
from bundle.errors import UserError, VolumeError
from bundle.prediction import PredictionFolder
from bundle.prediction.dicom_seg import PATIENT_AND_STUDY
from bundle.runs import release_folders
from bundle.tasks.segmentation import SaveDicomSegd, check_dicom_seg, write_dicom_seg
from tests.data.dicom_files import COLUMN, FIRST, MR, ROW, STEP, enhanced, image, place, planes, save

CLASSES = {"Leber, größer": 7, "kidney_left": 300, "肿瘤 tumour": 2}
FRAME_OF_REFERENCE = "1.2.3.9"
SECRETS = {
    "PatientComments": "Zyxwcomments", "OtherPatientIDs": "Zyxwother", "InstitutionName": "Zyxwhospital",
    "StationName": "Zyxwstation", "DeviceSerialNumber": "Zyxwserial", "PatientAddress": "Zyxwstreet",
    "OperatorsName": "Zyxw^Operator", "StudyDescription": "Zyxwstudy", "PatientAge": "077Y",
}  # fmt: skip
PATIENT = {
    "PatientName": "Müller^Zoë", "PatientID": "HOSP-4711", "PatientBirthDate": "19500102", "PatientSex": "unknown",
    "StudyInstanceUID": "1.2.3.1", "StudyDate": "2020.01.02", "StudyTime": "101112", "ReferringPhysicianName": "Doc^A",
    "StudyID": "S1", "AccessionNumber": "A77",
}  # fmt: skip


def ct(stored: np.ndarray, number: int, **more: Any) -> Dataset:
    more = {
        "SpecificCharacterSet": "ISO_IR 100",
        "FrameOfReferenceUID": FRAME_OF_REFERENCE,
        **PATIENT,
        **SECRETS,
        **more,
    }
    return image(stored, number, **more)


def random_labels(shape: Sequence[int]) -> np.ndarray:
    """No slice is empty, and the second class is in every other one only."""
    labels = np.random.default_rng(1).choice([0, 7, 300, 2], tuple(shape), p=[0.7, 0.1, 0.1, 0.1]).astype(np.uint16)
    labels[:, :, ::2][labels[:, :, ::2] == 300] = 0
    return labels


def written(path: Path, files: list[str], name: str = "scan") -> tuple[highdicom.seg.Segmentation, np.ndarray, str]:
    """The SEG of random labels, read back; the labels; and what was noted."""
    volume = read_series(files, name)
    labels = random_labels(volume.array.shape)
    note = write_dicom_seg(path, labels, volume.affine, files=files, classes=CLASSES, name=name, model="cafe" * 16)
    return highdicom.seg.segread(path), labels, note


def voxels(seg: Dataset) -> dict[tuple[int, tuple[float, ...]], np.ndarray]:
    """Each frame ``[rows, columns]`` by the number of its segment and its position, read without highdicom."""
    frames = pydicom.pixels.pixel_array(seg).reshape(-1, seg.Rows, seg.Columns)
    return {
        (
            int(group.SegmentIdentificationSequence[0].ReferencedSegmentNumber),
            tuple(map(float, group.PlanePositionSequence[0].ImagePositionPatient)),
        ): frame
        for group, frame in zip(seg.PerFrameFunctionalGroupsSequence, frames, strict=True)
    }


def assert_holds(seg: Dataset, labels: np.ndarray, places: Sequence[np.ndarray]) -> None:
    """Frames lie at `places` exactly, and hold what `labels` says there; there are no others."""
    found = voxels(seg)
    expected = {
        (number, tuple(map(float, where))): value == labels[:, :, index].T
        for index, where in enumerate(places)
        for number, value in enumerate(CLASSES.values(), start=1)
        if (labels[:, :, index] == value).any()
    }
    assert found.keys() == expected.keys()
    for key, plane in expected.items():
        np.testing.assert_array_equal(found[key], plane)


@pytest.fixture(scope="module")
def series(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Eight slices of a CT, with a localizer and a copy of a slice among them, in a folder with an odd name."""
    images = [ct(plane, number) for number, plane in enumerate(planes())]
    localizer = ct(planes(1)[0], 0, ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])
    return save([*images, localizer, ct(planes()[3], 3)], tmp_path_factory.mktemp("o'dd näme") / "a b")


def test_seg_lies_voxel_for_voxel_over_the_series(series: list[str], tmp_path: Path) -> None:
    seg, labels, note = written(tmp_path / "a folder" / "seg.dcm", series)
    assert note == ""
    assert_holds(seg, labels, [place(number) for number in range(8)])
    slices = {pydicom.dcmread(file).SOPInstanceUID: pydicom.dcmread(file) for file in series}
    assert (seg.Rows, seg.Columns) == (10, 12) and seg.FrameOfReferenceUID == FRAME_OF_REFERENCE
    (shared,) = seg.SharedFunctionalGroupsSequence
    assert shared.PlaneOrientationSequence[0].ImageOrientationPatient == [*ROW, *COLUMN]
    assert shared.PixelMeasuresSequence[0].PixelSpacing == [1.5, 1.25]
    assert float(shared.PixelMeasuresSequence[0].SpacingBetweenSlices) == STEP
    for group in seg.PerFrameFunctionalGroupsSequence:
        (source,) = group.DerivationImageSequence[0].SourceImageSequence
        referred = slices[source.ReferencedSOPInstanceUID]
        assert referred.ImagePositionPatient == group.PlanePositionSequence[0].ImagePositionPatient
        assert source.SpatialLocationsPreserved == "YES" and "LOCALIZER" not in referred.ImageType
    (referred_series,) = seg.ReferencedSeriesSequence
    assert referred_series.SeriesInstanceUID == "1.2.3.4"
    assert len(referred_series.ReferencedInstanceSequence) == 8
    assert seg.SeriesInstanceUID != "1.2.3.4"


def test_highdicom_gives_the_label_map_back(series: list[str], tmp_path: Path) -> None:
    seg, labels, _ = written(tmp_path / "seg.dcm", series)
    volume = seg.get_volume(combine_segments=True)
    numbers = np.zeros_like(labels)
    for number, value in enumerate(CLASSES.values(), start=1):
        numbers[labels == value] = number
    # highdicom's axes are slice from the last one on, row, column
    np.testing.assert_array_equal(volume.array[::-1].transpose(2, 1, 0), numbers)
    flip = np.array([[0, 0, -1, 7], [0, 1, 0, 0], [1, 0, 0, 0], [0, 0, 0, 1]])
    in_ras = np.diag([-1.0, -1, 1, 1]) @ volume.affine @ flip
    np.testing.assert_allclose(in_ras, read_series(series, "scan").affine, atol=1e-9)


def test_segments_are_named_coded_and_coloured(series: list[str], tmp_path: Path) -> None:
    seg, _, _ = written(tmp_path / "seg.dcm", series)
    assert (seg.SegmentationType, seg.file_meta.TransferSyntaxUID) == ("BINARY", "1.2.840.10008.1.2.1")
    assert [item.SegmentLabel for item in seg.SegmentSequence] == list(CLASSES)
    tissue, kidney, tumour = seg.SegmentSequence
    assert tissue.SegmentedPropertyTypeCodeSequence[0].CodeValue == "85756007"
    kind = kidney.SegmentedPropertyTypeCodeSequence[0]
    assert (kind.CodeValue, kind.SegmentedPropertyTypeModifierCodeSequence[0].CodeMeaning) == ("64033007", "Left")
    assert tumour.SegmentedPropertyTypeCodeSequence[0].CodeMeaning == "Neoplasm"
    for item in seg.SegmentSequence:
        assert item.SegmentAlgorithmType == "AUTOMATIC"
        (algorithm,) = item.SegmentationAlgorithmIdentificationSequence
        assert algorithm.AlgorithmName == "ct_mr_sparse_mim_pretraining"
        assert algorithm.AlgorithmVersion == seg.SoftwareVersions
    blue = highdicom.color.CIELabColor.from_rgb(31, 119, 180)  # matplotlib's first, as in the panels
    np.testing.assert_allclose(tissue.RecommendedDisplayCIELabValue, blue.value, atol=150)  # of 65535
    assert len({tuple(item.RecommendedDisplayCIELabValue) for item in seg.SegmentSequence}) == 3
    assert seg.DeviceSerialNumber == "cafe" * 16 and seg.ContentCreatorName == ""


def test_of_the_patient_it_has_what_the_standard_requires_and_no_more(
    series: list[str], tmp_path: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    volume, path = read_series(series, "scan"), tmp_path / "seg.dcm"
    labels = random_labels(volume.array.shape)
    caplog.set_level("DEBUG")
    caplog.clear()
    write_dicom_seg(path, labels, volume.affine, files=series, classes=CLASSES, name="scan")
    said = caplog.text + "".join(capfd.readouterr())
    assert not any(value in said for value in ["Müller", "Zyxw", *PATIENT.values()])
    content = path.read_bytes()
    assert b"Zyxw" not in content and b"077Y" not in content
    seg = pydicom.dcmread(path)
    assert {keyword: str(seg.get(keyword)) for keyword in PATIENT_AND_STUDY} == PATIENT


def test_a_tilted_gantry_has_its_slices_as_they_are(tmp_path: Path) -> None:
    shift = np.array([0, 0.9, 0])  # mm from slice to slice
    images = [ct(plane, k, position=place(k) + k * shift) for k, plane in enumerate(planes())]
    seg, labels, note = written(tmp_path / "seg.dcm", save(images, tmp_path / "ct"))
    assert "tilted" in note and "3D Slicer" in note
    assert_holds(seg, labels, [place(k) + k * shift for k in range(8)])


def test_an_oblique_series_has_its_slices_as_they_are(tmp_path: Path) -> None:
    row = np.array([0.8, 0.6, 0])
    column = np.array([0, 0, -1.0])
    normal = np.cross(row, column)
    positions = [FIRST + k * STEP * normal for k in range(8)]
    images = [ct(plane, k, position=positions[k], row=row, column=column) for k, plane in enumerate(planes())]
    seg, labels, _ = written(tmp_path / "seg.dcm", save(images[::-1], tmp_path / "ct"))
    stored = [pydicom.dcmread(file).ImagePositionPatient for file in sorted((tmp_path / "ct").iterdir())]
    assert_holds(seg, labels, sorted(stored, key=lambda where: float(np.dot(normal, where))))


def test_uneven_slices_get_a_grid_of_their_own_and_a_note(tmp_path: Path) -> None:
    steps = [0, 1, 2, 3, 3.5, 4, 4.5, 5]
    images = [ct(plane, k, position=place(steps[k])) for k, plane in enumerate(planes())]
    seg, labels, note = written(tmp_path / "seg.dcm", save(images, tmp_path / "ct"))
    assert "not evenly spaced" in note
    assert_holds(seg, labels, [place(k / 2) for k in range(11)])
    assert len(seg.ReferencedSeriesSequence[0].ReferencedInstanceSequence) == 8


def test_frames_of_a_multi_frame_file_are_referred_to_by_number(tmp_path: Path) -> None:
    order = [3, 0, 7, 1, 2, 6, 5, 4]
    header = enhanced(planes(), [place(k) for k in order])
    header.FrameOfReferenceUID = FRAME_OF_REFERENCE
    seg, labels, note = written(tmp_path / "seg.dcm", save([header], tmp_path / "mr"))
    assert note == "" and header.SOPClassUID == MR + ".1"
    assert_holds(seg, labels, [place(k) for k in range(8)])
    for group in seg.PerFrameFunctionalGroupsSequence:
        (source,) = group.DerivationImageSequence[0].SourceImageSequence
        where = place(order[int(source.ReferencedFrameNumber) - 1])
        np.testing.assert_array_equal(group.PlanePositionSequence[0].ImagePositionPatient, where)


def test_a_real_series_is_overlaid_to_the_digit(data_dir: Path, tmp_path: Path) -> None:
    (series,) = find_series(data_dir / "dicom/ct_chest_lidc")
    files, path = series.files[40:48], tmp_path / "seg.dcm"
    volume = read_series(files, "ct")
    labels = np.where(volume.array > 200, np.int32(5), np.int32(0))
    assert write_dicom_seg(path, labels, volume.affine, files=files, classes={"bone": 5, "a": 1}, name="ct") == ""
    seg = pydicom.dcmread(path)
    sources = {tuple(source.ImagePositionPatient): source for source in map(pydicom.dcmread, files)}
    frames = voxels(seg)
    assert {where for _, where in frames} == sources.keys() and {number for number, _ in frames} == {1}
    for (_, where), plane in frames.items():
        source = sources[where]
        values = source.pixel_array * float(source.RescaleSlope) + float(source.RescaleIntercept)
        np.testing.assert_array_equal(plane, values > 200)
    assert seg.PatientID == "LIDC-IDRI-0001" and seg.StudyInstanceUID == next(iter(sources.values())).StudyInstanceUID


def test_real_series_without_its_uids_has_none(data_dir: Path, tmp_path: Path) -> None:
    (series,) = find_series(data_dir / "dicom/ct_body_totalseg")
    labels, affine = np.ones((512, 512, 2), dtype=np.uint8), np.eye(4)
    with pytest.raises(VolumeError, match=r"ct: has DICOM files without .* and a series UID and a study UID"):
        write_dicom_seg(tmp_path / "s.dcm", labels, affine, files=series.files[:2], classes={"a": 1}, name="ct")


@pytest.mark.parametrize(
    ("tags", "words"),
    [({"FrameOfReferenceUID": ""}, "without a frame of reference"), ({"StudyInstanceUID": ""}, "without a study UID")],
)
def test_series_that_nothing_can_refer_to_has_none(tags: dict[str, Any], words: str, tmp_path: Path) -> None:
    files = save([ct(plane, k, **tags) for k, plane in enumerate(planes())], tmp_path / "ct")
    with pytest.raises(VolumeError, match=words):
        written(tmp_path / "seg.dcm", files)
    assert not (tmp_path / "seg.dcm").exists()


def test_transform_notes_what_it_wrote_and_why_not(series: list[str], tmp_path: Path) -> None:
    volume = read_series(series, "a")
    scans = [FoundVolume("a", tuple(series)), FoundVolume("b", ("scan.nii.gz",))]
    output = PredictionFolder(tmp_path / "out", settings={})
    labels = MetaTensor(
        torch.from_numpy(random_labels(volume.array.shape)[None]), affine=torch.from_numpy(volume.affine)
    )
    save = SaveDicomSegd(output, classes=CLASSES, scans=scans)
    done = save({"pred": labels, "name": "a", "files": ["label_maps/a.nii.gz"], "row": {"notes": "resampled"}})
    assert done["files"] == ["label_maps/a.nii.gz", "dicom_seg/a.dcm"] and done["row"]["notes"] == "resampled"
    assert_holds(pydicom.dcmread(output.dicom_seg("a")), labels[0].numpy(), [place(k) for k in range(8)])
    none = save({"pred": labels, "name": "b"})
    assert "files" not in none and none["row"]["notes"].startswith("no DICOM SEG: is no DICOM series")
    release_folders()
    off = SaveDicomSegd(output, classes=CLASSES, scans=[], enabled=False)
    assert off({"pred": labels, "name": "c"}) == {"pred": labels, "name": "c"}


def test_what_cannot_have_a_seg_is_one_line(series: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    volume = read_series(series, "scan")
    empty = np.zeros(volume.array.shape, dtype=np.uint8)
    path = tmp_path / "seg.dcm"
    with pytest.raises(VolumeError, match="no voxel of any class"):
        write_dicom_seg(path, empty, volume.affine, files=series, classes=CLASSES, name="scan")
    with pytest.raises(VolumeError, match="is no DICOM series"):
        write_dicom_seg(path, empty, volume.affine, files=[__file__], classes=CLASSES, name="scan")
    assert check_dicom_seg(True) and not check_dicom_seg(False)
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(UserError, match=r"needs highdicom: run .*pip install -c constraints\.txt highdicom"):
        check_dicom_seg(True)
    assert not check_dicom_seg(False)
