# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""bundle/data/scans.py: folders of scans in which label maps lie, too."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel
import numpy as np
import pytest

from bundle.data import FoundVolume, VolumeSet, find_scans
from bundle.errors import UserError, VolumeError
from tests.data.volumes import ct_phantom, ellipsoid, mr_phantom, preparation, write_dicom, write_nifti


def touch(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


def taken(found: list[FoundVolume]) -> list[str]:
    return [volume.name for volume in found if not volume.left_out[0]]


LAYOUTS = {
    "msd": (["imagesTr/a.nii.gz", "imagesTs/b.nii.gz"], ["labelsTr/a.nii.gz"]),
    "nnunet": (
        ["D1/imagesTr/a_0000.nii.gz", "D1/imagesTr/a_0001.nii.gz"],
        ["D1/labelsTr/a.nii.gz", "D1/labelsTs/c.nii"],
    ),
    "totalsegmentator": (
        ["s1/ct.nii.gz", "s2/ct.nii.gz"],
        ["s1/segmentations/liver.nii.gz", "s2/segmentations/a.nii.gz"],
    ),
    "brats": (["p/p_t1.nii", "p/p_flair.nii"], ["p/p_seg.nii"]),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_of_the_known_layouts_the_scans_are_taken_and_the_label_maps_named(tmp_path: Path, layout: str) -> None:
    scans, maps = LAYOUTS[layout]
    found = find_scans(touch(tmp_path, *scans, *maps))
    assert taken(found) == sorted(scans)
    left = {volume.name: volume for volume in found if volume.left_out[0]}
    assert sorted(left) == sorted(maps)
    for volume in left.values():
        with pytest.raises(VolumeError, match=r"label map.*--include"):
            volume.to_item()


def test_only_the_path_below_the_folder_counts(tmp_path: Path) -> None:
    assert taken(find_scans(touch(tmp_path / "labels/my_seg", "a.nii.gz"))) == ["a.nii.gz"]


def test_include_takes_what_it_fits_and_nothing_else(tmp_path: Path) -> None:
    touch(tmp_path, "a.nii.gz", "labels/a.nii.gz", "labels/b.nii.gz", "x_seg.nii.gz")
    assert taken(find_scans(tmp_path)) == ["a.nii.gz"]
    found = find_scans(tmp_path, ["labels/b*"])
    assert taken(found) == ["a.nii.gz", "labels/b.nii.gz"]
    by_name = {volume.name: volume for volume in found}
    assert by_name["a.nii.gz"].from_folder and not by_name["labels/b.nii.gz"].from_folder
    assert taken(find_scans(tmp_path, "[*_seg*, labels/*]")) == [
        "a.nii.gz", "labels/a.nii.gz", "labels/b.nii.gz", "x_seg.nii.gz",
    ]  # fmt: skip


def test_a_pattern_that_fits_nothing_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r'--include "lables/\*" fits none of the 1 volumes'):
        find_scans(touch(tmp_path, "labels/a.nii.gz"), ["lables/*"])


def test_of_many_label_maps_of_a_kind_the_rest_is_counted(tmp_path: Path) -> None:
    touch(tmp_path, *(f"labelsTr/{number:03d}.nii.gz" for number in range(70)), "a.nii.gz", "b_seg.nii.gz")
    found = [volume for volume in find_scans(tmp_path) if volume.left_out[0]]
    assert len(found) == 21
    assert "as do 50 files after it" in found[-1].left_out[0] and found[-1].name == "labelsTr/019.nii.gz"
    assert not any("as do" in volume.left_out[0] for volume in found[:-1])


def test_a_series_in_the_folder_where_one_is_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_dicom(tmp_path / "scan/sub", ct_phantom((4, 8, 8)))
    for place, given in (("scan/sub", "."), ("scan/sub/..", "sub")):
        monkeypatch.chdir(tmp_path / place)
        assert [volume.name for volume in find_scans(given)] == ["sub"]


def test_what_a_list_names_is_taken_as_it_says(tmp_path: Path) -> None:
    (tmp_path / "list.json").write_text(json.dumps({"training": ["labels/a.nii.gz", "b_seg.nii.gz"]}))
    found = find_scans(tmp_path / "list.json")
    assert len(taken(found)) == 2 and not any(volume.from_folder for volume in found)


@pytest.mark.parametrize("key", ["modality", "channel_names"])
def test_a_dataset_json_above_a_file_says_its_modality(tmp_path: Path, key: str) -> None:
    touch(tmp_path, "D1/imagesTr/a.nii.gz", "D2/imagesTr/b.nii.gz", "D3/c.nii.gz", "d.nii.gz")
    (tmp_path / "D1/dataset.json").write_text(json.dumps({key: {"0": "CT"}}))
    (tmp_path / "D2/dataset.json").write_text(json.dumps({key: {"0": "MRI"}}))
    (tmp_path / "D3/dataset.json").write_text("no json")
    assert [volume.modality for volume in find_scans(tmp_path)] == ["CT", "MR", "", ""]


def test_each_channel_of_nnunets_files_has_its_own_modality_and_stays_with_its_case(tmp_path: Path) -> None:
    touch(tmp_path, *(f"imagesTr/{case}_000{n}.nii.gz" for case in ("a", "b") for n in range(3)))
    (tmp_path / "dataset.json").write_text(json.dumps({"channel_names": {"0": "CT", "1": "PET", "2": "T1"}}))
    found = find_scans(tmp_path)
    assert [(v.modality, v.group) for v in found if not v.left_out[0]] == [
        ("CT", "imagesTr/a"), ("", "imagesTr/a"), ("CT", "imagesTr/b"), ("", "imagesTr/b"),
    ]  # fmt: skip
    assert {v.left_out[0] for v in found if "_0001" in v.name} == {"is PET by its dataset.json, neither CT nor MR"}


def test_one_channel_means_that_a_number_at_the_end_is_part_of_the_name(tmp_path: Path) -> None:
    touch(tmp_path, "imagesTr/scan_0001.nii.gz", "imagesTr/scan_0002.nii.gz")
    (tmp_path / "dataset.json").write_text(json.dumps({"channel_names": {"0": "CT"}}))
    assert [(v.modality, v.group) for v in find_scans(tmp_path)] == [("CT", "")] * 2


def test_a_list_may_say_whose_scan_a_volume_is(tmp_path: Path) -> None:
    training = ["a.nii", {"image": "b.nii", "group": "p"}, {"image": "c.nii", "group": "p"}]
    (tmp_path / "dataset.json").write_text(json.dumps({"training": training}))
    assert [volume.group for volume in find_scans(tmp_path / "dataset.json")] == ["", "p", "p"]


def test_a_list_with_one_modality_for_all_says_it_of_each_entry_that_says_nothing(tmp_path: Path) -> None:
    training = ["a.nii", {"image": "b.nii"}, {"image": "c.nii", "modality": "CT"}]
    (tmp_path / "dataset.json").write_text(json.dumps({"modality": {"0": "MRI"}, "training": training}))
    assert [volume.modality for volume in find_scans(tmp_path / "dataset.json")] == ["MR", "MR", "CT"]


def prepared(root: Path, include: tuple[str, ...] = ()) -> tuple[list[str], dict[str, str]]:
    volumes = VolumeSet(
        dataset_dir=root, transform=preparation(), cache_dir=root.parent / "cache", val_fraction=0,
        find=lambda folder: find_scans(folder, include),
    )  # fmt: skip
    return [volume.name for volume in volumes.training], {name: problem for name, problem, _ in volumes.skipped}


def test_a_mixed_folder_trains_on_its_scans_and_says_why_it_leaves_the_rest(tmp_path: Path) -> None:
    root, labels = tmp_path / "mixed", ellipsoid((24, 20, 16)) * (1 + np.arange(24, dtype=np.uint8)[:, None, None] // 4)
    write_nifti(root / "case/scan.nii.gz", ct_phantom())
    write_nifti(root / "case/bits.nii.gz", (mr_phantom() // 3).clip(0, 255).astype(np.uint8))
    write_nifti(root / "case/organ.nii.gz", labels)  # its voxels tell
    write_nifti(root / "case/organ_float.nii.gz", labels * np.float32(0.99999))
    write_nifti(root / "labels/scan.nii.gz", labels)  # its path tells
    write_dicom(root / "labels/series", ct_phantom((24, 20, 16)))  # a DICOM tag tells, not the path
    names, problems = prepared(root)
    assert names == ["case/bits.nii.gz", "case/scan.nii.gz", "labels/series"]
    assert problems.keys() == {"case/organ.nii.gz", "case/organ_float.nii.gz", "labels/scan.nii.gz"}
    assert all("label map" in problem for problem in problems.values())
    # the cache of a run that took them does not bring them back
    forced, _ = prepared(root, ("case/organ*",))
    assert {"case/organ.nii.gz", "case/organ_float.nii.gz"} <= set(forced)
    assert prepared(root)[0] == names


def test_the_default_volumes_and_their_label_maps_are_told_apart(data_dir: Path, tmp_path: Path) -> None:
    flat = tmp_path / "flat"
    flat.mkdir()
    for name in ("ct_body_totalseg", "mr_body_totalseg"):
        organs = nibabel.load(data_dir / f"labels/{name}.nii.gz")
        scan = nibabel.load(data_dir / f"volumes/{name}.nii.gz").slicer[..., : organs.shape[2]]
        nibabel.save(scan, flat / f"{name}.nii.gz")
        nibabel.save(organs, flat / f"{name}_organs.nii.gz")
    names, problems = prepared(flat)
    assert names == ["ct_body_totalseg.nii.gz", "mr_body_totalseg.nii.gz"]
    assert list(problems) == ["ct_body_totalseg_organs.nii.gz", "mr_body_totalseg_organs.nii.gz"]
    listed = [volume for volume in find_scans(data_dir) if not volume.left_out[0]]
    assert not any(volume.name.startswith("labels/") for volume in listed)
    assert sum(volume.name.startswith("volumes/") for volume in listed) == 11
