# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""bundle/data/dicom/folders.py and bundle/data/files.py: series as archives, CDs and users store them."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pydicom
import pytest

from bundle.data import find_volumes, read_volume
from bundle.data.names import name_digest, pseudonymous
from bundle.data.prepared_volume import skipped_because
from bundle.data.volume_set import hashed
from bundle.errors import VolumeError
from tests.data.dicom_files import COUNT, image, planes, save
from tests.data.volumes import ct_phantom, write_nifti

STORED = planes()


def slices(**tags) -> list:
    return [image(STORED[k], k, **tags) for k in range(COUNT)]


def assert_one_whole_volume(folder: Path, name: str) -> None:
    (found,) = find_volumes(folder)
    assert found.name == name and found.modality == "CT"
    volume = read_volume(found.files, found.name)
    np.testing.assert_array_equal(volume[0].numpy(), STORED.transpose(2, 1, 0) - 1024)


def test_series_in_several_folders_is_one_volume_with_the_name_of_the_folder_above(tmp_path: Path) -> None:
    images = slices()
    save(images[::2], tmp_path / "scan/DIR000")
    save(images[1::2], tmp_path / "scan/DIR001")
    assert_one_whole_volume(tmp_path, "scan")


def test_copies_of_slices_in_another_folder_are_taken_once(tmp_path: Path) -> None:
    files = save(slices(), tmp_path / "scan/a")
    (tmp_path / "scan/b").mkdir()
    for file in files[:3]:
        shutil.copy(file, tmp_path / "scan/b")
    assert_one_whole_volume(tmp_path, "scan")


def test_folders_with_other_images_at_the_same_places_stay_two_volumes(tmp_path: Path) -> None:
    for seed, folder in enumerate(("early", "late")):
        save([image(plane, k) for k, plane in enumerate(planes(seed=seed))], tmp_path / folder)
    assert [volume.name for volume in find_volumes(tmp_path)] == ["early", "late"]


def test_series_of_two_patients_with_one_uid_stay_two_volumes(tmp_path: Path) -> None:
    for patient, part in (("1", slice(0, 4)), ("2", slice(4, 8))):
        save(slices(PatientID=patient)[part], tmp_path / f"patient{patient}")
    assert [volume.name for volume in find_volumes(tmp_path)] == ["patient1", "patient2"]


@pytest.mark.parametrize(("implicit", "little"), [(True, True), (False, True), (False, False)])
def test_files_without_preamble_are_found(tmp_path: Path, implicit: bool, little: bool) -> None:
    folder = tmp_path / "scan"
    folder.mkdir()
    for k, one in enumerate(slices()):
        del one.file_meta
        if not little:
            one.PixelData = np.frombuffer(one.PixelData, "<u2").astype(">u2").tobytes()
        one.save_as(folder / f"{k}", enforce_file_format=False, implicit_vr=implicit, little_endian=little)
    assert_one_whole_volume(folder, "scan")


def test_folder_that_begins_with_many_other_files_is_searched(tmp_path: Path) -> None:
    save(slices(), tmp_path / "scan")
    for k in range(40):
        (tmp_path / f"scan/a{k:02d}.png").write_bytes(b"\x89PNG\r\n" + bytes(300))
        (tmp_path / f"scan/a{k:02d}").write_bytes(bytes([8, 0]) + bytes(300))
        (tmp_path / f"scan/b{k:02d}").write_text("some notes")
    assert_one_whole_volume(tmp_path, "scan")


def test_hidden_files_beside_slices_are_left_out(tmp_path: Path) -> None:
    files = save(slices(), tmp_path / "scan")
    save([image(planes(1, seed=3)[0], 3)], tmp_path / "scan", name="._")
    assert len(files) == COUNT
    assert_one_whole_volume(tmp_path, "scan")


def test_linked_folders_are_searched_and_loops_end(tmp_path: Path) -> None:
    save(slices(), tmp_path / "elsewhere/scan")
    write_nifti(tmp_path / "elsewhere/a.nii.gz", ct_phantom())
    (tmp_path / "data/sub").mkdir(parents=True)
    (tmp_path / "data/link").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    (tmp_path / "data/sub/up").symlink_to(tmp_path / "data", target_is_directory=True)
    (tmp_path / "elsewhere/loop").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    assert [volume.name for volume in find_volumes(tmp_path / "data")] == ["link/a.nii.gz", "link/scan"]


def test_linked_folder_that_is_there_by_itself_is_searched_once_by_its_real_name(tmp_path: Path) -> None:
    write_nifti(tmp_path / "real/a.nii.gz", ct_phantom())
    (tmp_path / "a_link").symlink_to(tmp_path / "real", target_is_directory=True)
    assert [volume.name for volume in find_volumes(tmp_path)] == ["real/a.nii.gz"]


def test_file_that_is_no_image_does_not_end_the_search(tmp_path: Path) -> None:
    save(slices(), tmp_path / "scan")
    (tmp_path / "scan/broken.dcm").write_bytes(bytes(128) + b"DICM" + bytes(range(256)) * 4)
    (tmp_path / "scan/short.dcm").write_bytes(b"DI")
    os.mkfifo(tmp_path / "scan/pipe")
    (tmp_path / "scan/nowhere").symlink_to(tmp_path / "missing")
    assert_one_whole_volume(tmp_path, "scan")


@pytest.mark.parametrize("retagged", [False, True])
def test_a_whole_series_copied_into_another_folder_is_one_volume_and_named(tmp_path: Path, retagged: bool) -> None:
    save(slices(), tmp_path / "archive/a b")
    shutil.copytree(tmp_path / "archive/a b", tmp_path / "archive/copy")
    for file in (tmp_path / "archive/copy").iterdir() if retagged else ():
        header = pydicom.dcmread(file)
        header.InstitutionName = "another archive"
        header.compress(pydicom.uid.RLELossless)  # another file of the same image
        header.SOPInstanceUID = header.file_meta.MediaStorageSOPInstanceUID = pydicom.dcmread(
            tmp_path / "archive/a b" / file.name
        ).SOPInstanceUID
        header.save_as(file)
    one, other = find_volumes(tmp_path)
    assert (one.name, one.left_out[0]) == ("archive/a b", "")
    assert (other.name, other.left_out[0]) == ("archive/copy", "holds copies of the DICOM images in archive/a b")
    said = r"^archive/copy: holds copies of the DICOM images in archive/a b; remove one"
    with pytest.raises(VolumeError, match=said) as caught:
        other.to_item()
    hidden = pseudonymous(other)
    assert hidden.left_out[0] == f"holds copies of the DICOM images in {name_digest('archive/a b')}"
    assert "archive" not in hidden.name + hidden.left_out[0]
    skipped = skipped_because(other.name, caught.value)
    assert hashed(skipped, [one, other]) == (hidden.name, *hidden.left_out)


def test_another_version_of_the_same_instances_stays_a_volume(tmp_path: Path) -> None:
    save(slices(), tmp_path / "a")
    shutil.copytree(tmp_path / "a", tmp_path / "defaced")
    for file in (tmp_path / "defaced").iterdir():
        header = pydicom.dcmread(file)
        header.PixelData = bytes(len(header.PixelData) // 2) + header.PixelData[len(header.PixelData) // 2 :]
        header.save_as(file)
    assert [(volume.name, volume.left_out[0]) for volume in find_volumes(tmp_path)] == [("a", ""), ("defaced", "")]
