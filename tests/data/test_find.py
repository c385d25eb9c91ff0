# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""bundle/data/find.py: folders, DICOM trees and json lists."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest

from bundle.data import FoundVolume, find_volumes, read_volume
from bundle.data.lists import find_labelled
from bundle.errors import UserError, VolumeError
from tests.data.volumes import PATIENT, ct_phantom, write_dicom, write_nifti


def test_files_of_all_kinds_are_found_at_any_depth_and_named_by_their_path(tmp_path: Path) -> None:
    for name in ("b.nii.gz", "deep/er/a.nii", "c.NRRD", "d.mha", "notes.txt", ".hidden.nii", ".cache/e.nii"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert [volume.name for volume in find_volumes(tmp_path)] == ["b.nii.gz", "c.NRRD", "d.mha", "deep/er/a.nii"]


def test_default_volumes_are_all_found(data_dir: Path) -> None:
    names = [volume.name for volume in find_volumes(data_dir / "volumes")]
    assert len(names) == 11 and sum(name.startswith("ct_") for name in names) == 5


def test_dicom_series_are_grouped_whether_in_one_folder_or_deep(tmp_path: Path) -> None:
    write_dicom(tmp_path / "both", ct_phantom((4, 8, 8)), name="first")
    write_dicom(tmp_path / "both", ct_phantom((5, 8, 8)), name="second")
    write_dicom(tmp_path / "study/series/images", ct_phantom((6, 8, 8)), modality="MR")
    found = {volume.name: volume for volume in find_volumes(tmp_path)}
    assert sorted(found) == ["both (series 1)", "both (series 2)", "study/series/images"]
    assert sorted(len(volume.files) for volume in found.values()) == [4, 5, 6]
    assert [found[name].modality for name in sorted(found)] == ["CT", "CT", "MR"]


def test_slices_are_ordered_by_position_not_by_file_name(tmp_path: Path) -> None:
    write_dicom(tmp_path, ct_phantom((12, 8, 8)))
    (volume,) = find_volumes(tmp_path)
    positions = [float(pydicom.dcmread(file).ImagePositionPatient[2]) for file in volume.files]
    assert positions == sorted(positions)


def test_nifti_files_and_dicom_series_may_be_mixed(tmp_path: Path) -> None:
    write_dicom(tmp_path / "series", ct_phantom((4, 8, 8)))
    write_nifti(tmp_path / "a.nii", ct_phantom())
    assert [volume.name for volume in find_volumes(tmp_path)] == ["a.nii", "series"]


def test_dicom_objects_without_pixels_are_no_volumes(tmp_path: Path) -> None:
    write_dicom(tmp_path / "image", ct_phantom((4, 8, 8)))
    (report,) = write_dicom(tmp_path / "image", ct_phantom((1, 8, 8)), name="report", modality="SR")
    header = pydicom.dcmread(report)
    for tag in ("PixelData", "Rows", "Columns"):
        delattr(header, tag)
    header.save_as(report)
    assert [volume.name for volume in find_volumes(tmp_path)] == ["image"]


def test_series_of_other_modalities_are_no_volumes_but_an_emptied_tag_is_no_modality(tmp_path: Path) -> None:
    for modality in ("CT", "MR", "", "PT", "SEG", "RTDOSE"):
        write_dicom(tmp_path / f"is_{modality}", ct_phantom((4, 8, 8)), modality=modality)
    assert [(volume.name, volume.modality) for volume in find_volumes(tmp_path)] == [
        ("is_", ""),
        ("is_CT", "CT"),
        ("is_MR", "MR"),
    ]


def test_folder_that_is_itself_a_series_gives_the_series_its_name(tmp_path: Path) -> None:
    write_dicom(tmp_path / "scan", ct_phantom((4, 8, 8)))
    assert [volume.name for volume in find_volumes(tmp_path / "scan")] == ["scan"]


def test_series_of_one_patient_share_a_group_that_does_not_name_the_patient(tmp_path: Path) -> None:
    write_dicom(tmp_path / "a", ct_phantom((4, 8, 8)))
    write_dicom(tmp_path / "b", ct_phantom((4, 8, 8)))
    write_dicom(tmp_path / "c", ct_phantom((4, 8, 8)), tags={**PATIENT, "PatientID": "other"})
    first, second, third = find_volumes(tmp_path)
    assert first.group and first.group == second.group != third.group
    assert "HOSP" not in first.group


def test_series_of_one_study_share_a_group_where_the_patient_id_was_removed(tmp_path: Path) -> None:
    for folder, study in (("a", "1.2.3"), ("b", "1.2.3"), ("c", "1.2.4")):
        tags = {"PatientID": "", "StudyInstanceUID": study}
        write_dicom(tmp_path / folder, ct_phantom((4, 8, 8)), tags=tags)
    first, second, third = find_volumes(tmp_path)
    assert first.group and first.group == second.group != third.group


def test_a_path_in_bids_tells_the_subject(tmp_path: Path) -> None:
    one = ["sub-01/ses-1/anat/sub-01_ses-1_T1w.nii.gz", "sub-01/ses-2/anat/a.nii", "derivatives/prep/sub-01/b.mha"]
    others = ["a/sub-01/T1.nii", "a/sub-01_T2.nii.gz", "b/sub-01.nii", "sub-012/T1.nii", "sub-cortical_1.nii"]
    others.append("x/sub-2x y/1.nii")
    groups = [FoundVolume(name, ()).group for name in one + others]
    assert len(set(groups[:3])) == 1 and groups[0].endswith("sub-01")
    assert groups[3] == groups[4] != groups[5], "of one folder, and another person of another"
    assert len({groups[0], groups[3], groups[5], groups[6]}) == 4
    assert groups[7:] == ["", ""], "no subjects"
    assert FoundVolume(one[0], (), group="p").group == "p", "what a list or DICOM says comes first"


def test_names_carry_no_patient_attribute_and_no_uid(tmp_path: Path) -> None:
    paths = write_dicom(tmp_path / "a", ct_phantom((4, 8, 8)))
    (volume,) = find_volumes(tmp_path)
    header = pydicom.dcmread(paths[0])
    for value in (*PATIENT.values(), header.SeriesInstanceUID, header.StudyInstanceUID):
        assert value not in f"{volume.name} {volume.modality} {volume.group}"


def test_json_list_gives_paths_modality_and_split(tmp_path: Path) -> None:
    write_dicom(tmp_path / "images/series", ct_phantom((4, 8, 8)))
    content = {
        "training": ["./images/a.nii.gz", {"image": "images/b.nii.gz", "modality": "MRI", "label": "b.nii.gz"}],
        "validation": [{"image": "images/series"}],
    }
    path = tmp_path / "dataset.json"
    path.write_text(json.dumps(content))
    found = {Path(volume.name).name: volume for volume in find_volumes(path)}
    assert found["a.nii.gz"].files == (str(tmp_path / "images/a.nii.gz"),)
    assert (found["a.nii.gz"].modality, found["a.nii.gz"].part) == ("", "training")
    assert (found["b.nii.gz"].modality, found["b.nii.gz"].part) == ("MR", "training")
    series = found["series"]
    assert (series.name, len(series.files)) == ("images/series", 4)
    assert (series.modality, series.part) == ("CT", "validation")


def test_json_entry_that_is_a_folder_without_a_series_is_not_forgotten(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    path = tmp_path / "dataset.json"
    path.write_text('{"training": ["empty"]}')
    (volume,) = find_volumes(path)
    with pytest.raises(VolumeError, match=r"^empty: is a folder without a DICOM series"):
        read_volume(volume.files, volume.name)


def test_json_list_without_validation_leaves_the_split_open(tmp_path: Path) -> None:
    path = tmp_path / "dataset.json"
    path.write_text('{"training": ["a.nii", "b.nii"], "validation": []}')
    assert [volume.part for volume in find_volumes(path)] == ["", ""]


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ("{", "is no readable json"),
        ("[]", "has no list 'training'"),
        ('{"training": [{"label": "a.nii"}]}', "give a path or"),
        ('{"training": [3]}', "give a path or"),
        ('{"training": ["a.nii"], "validation": 3}', "validation"),
    ],
)
def test_unusable_json_is_one_clear_line(tmp_path: Path, content: str, complaint: str) -> None:
    path = tmp_path / "dataset.json"
    path.write_text(content)
    with pytest.raises(UserError, match=complaint) as raised:
        find_volumes(path)
    assert str(path) in str(raised.value) and "\n" not in str(raised.value)


def test_what_cannot_be_opened_ends_no_search_and_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Permissions are feigned: the superuser of a container has all."""
    write_dicom(tmp_path / "series", ct_phantom())
    for name in ("ok.nii.gz", "locked.nii.gz", "closed/a.nii.gz", "listed/a.nii.gz"):
        write_nifti(tmp_path / name, ct_phantom())
    (tmp_path / "gone.nii.gz").symlink_to(tmp_path / "archive/gone.nii.gz")
    (tmp_path / "slice").write_bytes(bytes(200))
    scandir, access = os.scandir, os.access

    def name(path: str | bytes | Path) -> str:
        return Path(os.fsdecode(path)).name

    def scan(path: bytes) -> Any:
        if name(path) == "closed":
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", scan)
    hidden = (("listed", os.X_OK), ("locked.nii.gz", os.R_OK), ("slice", os.R_OK))
    monkeypatch.setattr(os, "access", lambda path, mode: access(path, mode) and (name(path), mode) not in hidden)
    found = {volume.name: volume for volume in find_volumes(tmp_path, others=True)}
    assert list(found) == ["closed (unreadable)", "locked.nii.gz", "ok.nii.gz", "series"]
    said = "4 file(s), folder(s) or link(s) that cannot be opened, some in 3 other place(s)"
    assert found["closed (unreadable)"].left_out == (said, "correct their permissions or remove them")
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    with pytest.raises(VolumeError, match="is constant"):  # what it is, not that it may not be read
        read_volume([str(write_nifti(tmp_path / "b.nii", np.ones((4, 4, 4), np.int16)))], "b")
    monkeypatch.setattr("bundle.data.read.read_by_nibabel", lambda *_: (tmp_path / "closed/none").read_bytes())
    with pytest.raises(VolumeError, match=r"^a: may not be read; correct the permissions"):
        read_volume(list(found["locked.nii.gz"].files), "a")


def test_missing_folder_names_the_command_that_fetches_the_default_volumes(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"does not exist.*python scripts/fetch_data\.py"):
        find_volumes(tmp_path / "volumes")


def test_empty_folder_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no NIfTI or NRRD file and no DICOM series"):
        find_volumes(tmp_path)


def test_single_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is a file: give its folder"):
        find_volumes(write_nifti(tmp_path / "a.nii", ct_phantom()))


@pytest.mark.parametrize("entry", ["/", "//", "/tmp/../"])
def test_the_root_of_all_folders_is_no_volume(tmp_path: Path, entry: str) -> None:
    (tmp_path / "list.json").write_text(json.dumps({"training": [entry]}))
    with pytest.raises(UserError, match=r"lists '/.*', the root of all folders: name files"):
        find_volumes(tmp_path / "list.json")


def test_a_person_may_have_the_number_0(tmp_path: Path) -> None:
    for name in "abc":
        write_nifti(tmp_path / f"{name}.nii.gz", ct_phantom((8, 8, 8)))
    entries = [{"image": "a.nii.gz", "group": 0}, {"image": "b.nii.gz", "group": "0"}, {"image": "c.nii.gz"}]
    (tmp_path / "list.json").write_text(json.dumps({"training": entries}))
    assert [volume.group for volume in find_volumes(tmp_path / "list.json")] == ["0", "0", ""]
    labelled = [{**entry, "label": "a.nii.gz"} for entry in entries]
    (tmp_path / "list.json").write_text(json.dumps({"training": labelled}))
    assert [volume.group for volume in find_labelled(tmp_path / "list.json", ("label",))] == ["0", "0", ""]


@pytest.mark.parametrize(("key", "value"), [("modality", {"0": "PET"}), ("channel_names", {"0": "PT"}), ("", "PT")])
def test_volumes_that_a_list_calls_pet_are_left_out_as_the_folder_leaves_them_out(
    tmp_path: Path, key: str, value: object
) -> None:
    for name in ("pet.nii", "ct.nii"):
        write_nifti(tmp_path / name, ct_phantom())
    pet = {"image": "pet.nii"} | ({} if key else {"modality": value})
    listed = {"training": [pet, {"image": "ct.nii", "modality": "CT"}]} | ({key: value} if key else {})
    (tmp_path / "list.json").write_text(json.dumps(listed))
    ct, other = find_volumes(tmp_path / "list.json")
    assert ct.left_out == ("", "") and ct.modality == "CT"
    assert "by its list, neither CT nor MR" in other.left_out[0] and other.left_out[1]


def test_a_folder_of_other_dicom_files_says_what_they_are(tmp_path: Path) -> None:
    for modality, name in (("PT", "pet"), ("OT", "scanned")):
        write_dicom(tmp_path / name, ct_phantom((3, 4, 4)), modality=modality)
    said = r"no DICOM series of CT or MR, but 3 DICOM .* in pet \(PT\); 3 DICOM .* in scanned \(OT\): give a folder"
    with pytest.raises(UserError, match=said):
        find_volumes(tmp_path)


def test_a_folder_of_archives_says_to_unpack_them(tmp_path: Path) -> None:
    (tmp_path / "series").mkdir()
    for name in ("series/1.zip", "2.tar.gz", "notes.txt"):
        (tmp_path / name).write_bytes(b"PK")
    with pytest.raises(UserError, match=r"holds no volume but 2 archive\(s\), such as .*: unpack them$"):
        find_volumes(tmp_path)
