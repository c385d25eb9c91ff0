# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
from __future__ import annotations

import json
from pathlib import Path

import pytest

from bundle.data import FoundVolume
from bundle.errors import UserError
from bundle.prediction import PredictionFolder, list_scans


def touch(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(name.encode())
    return folder


def listed(*arguments, **options) -> dict[str, list[str]]:
    """Names of the files of each scan, by the name of its results; of those that are left out nothing."""
    found = list_scans(*arguments, **options)
    return {
        scan.name: [] if scan.left_out[0] else [Path(f).name for files in (scan.files, *scan.channels) for f in files]
        for scan in found
    }


def test_nnunets_numbers_are_channels_only_if_the_model_takes_several(tmp_path: Path):
    cases = ("b/x_0000.nii.gz", "b/x_0001.nii.gz", "a_0000.nrrd", "a_0001.nrrd", "c_0001.nii.gz", "d_0002.nii")
    folder = touch(tmp_path, *cases, "e_0001.nii.gz", "e_0002.nii.gz", "labelsTr/x.nii.gz")
    joined = listed(folder, channels=2)
    assert joined == {
        "a": ["a_0000.nrrd", "a_0001.nrrd"],
        "b/x": ["x_0000.nii.gz", "x_0001.nii.gz"],
        "c_0001": ["c_0001.nii.gz"],  # a number of the patient, with the channels as a fourth axis
        "d_0002": ["d_0002.nii"],
        "e_0001": ["e_0001.nii.gz"],
        "e_0002": ["e_0002.nii.gz"],
        "labelsTr/x": [],
    }
    alone = listed(folder)
    assert alone.keys() == {case.split(".")[0] for case in cases} | {"e_0001", "e_0002", "labelsTr/x"}


def test_a_json_lists_scans_of_all_parts_with_or_without_labels(tmp_path: Path):
    folder = touch(tmp_path, "a.nii.gz", "b.nii.gz", "c.nii.gz", "d t1.nii.gz", "d t2.nii.gz")
    lists = {"training": [{"image": "a.nii.gz", "label": "none.nii.gz"}], "validation": ["b.nii.gz"]}
    lists["test"] = [{"image": ["d t1.nii.gz", "d t2.nii.gz"]}, "c.nii.gz"]
    (folder / "list.json").write_text(json.dumps({"modality": {"0": "CT"}, **lists}))
    found = list_scans(folder / "list.json")
    assert [scan.name for scan in found] == ["a", "b", "c", "d t1"] and {scan.modality for scan in found} == {"CT"}
    assert found[3].channels == ((str(folder / "d t2.nii.gz"),),) and not found[0].annotations
    for part, names in {"test": ["c", "d t1"], "auto": ["c", "d t1"], "training": ["a"]}.items():
        assert [scan.name for scan in list_scans(folder / "list.json", part=part)] == names
    with pytest.raises(UserError, match="--part 'none' is not known"):
        list_scans(folder / "list.json", part="none")
    for content, said in (({"test": []}, "lists no volume"), ({"test": [{"scan": "a"}]}, "give a path or")):
        (folder / "list.json").write_text(json.dumps(content))
        with pytest.raises(UserError, match=said):
            list_scans(folder / "list.json")


def test_one_file_is_a_scan_whatever_its_name(tmp_path: Path):
    assert listed(touch(tmp_path, "x_seg.nii.gz") / "x_seg.nii.gz") == {"x_seg": ["x_seg.nii.gz"]}


def test_hashed_names_say_nothing_and_differ(tmp_path: Path):
    names = listed(touch(tmp_path, "doe_0000.nii", "doe_0001.nii", "roe_0000.nii", "roe_0001.nii"), hash_names=True)
    assert len(names) == 4 and all(len(name) == 16 and "oe" not in name for name in names)


def test_no_result_is_written_over_a_scan(tmp_path: Path):
    touch(tmp_path, "label_maps/a.nii.gz")
    names = listed(tmp_path / "label_maps", files=lambda name: [tmp_path / "label_maps" / f"{name}.nii.gz"])
    assert names == {"a 2": ["a.nii.gz"]}


def test_what_an_earlier_run_has_written_is_no_scan_and_other_files_there_are(tmp_path: Path):
    """The second run of a command whose --output_dir lies in --dataset_dir."""
    output = PredictionFolder(tmp_path / "out", settings={})
    scan = touch(tmp_path, "a.nii.gz", "out/label_maps/a.nii.gz", "out/mine.nii") / "a.nii.gz"
    output.done(FoundVolume("a", (str(scan),)), {"files": ["label_maps/a.nii.gz"]})
    names = listed(tmp_path, files=output.files, written=output.written)
    assert names == {"a": ["a.nii.gz"], "out/mine": ["mine.nii"]}


@pytest.mark.parametrize("place", ["", "a.nii.gz"])
def test_a_part_needs_a_json_that_lists_it(tmp_path: Path, place: str):
    """Else scans of all parts would be predicted without a word."""
    path = touch(tmp_path, "a.nii.gz") / place
    for part in ("all", "auto", ""):
        assert len(list_scans(path, part=part)) == 1
    with pytest.raises(UserError, match=r"^--part test needs a json that lists it, and --dataset_dir .* is a "):
        list_scans(path, part="test")
    with pytest.raises(UserError, match=r"^--part 'none' is not known"):
        list_scans(path, part="none")
