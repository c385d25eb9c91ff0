# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""Results are named after volumes, inside the output folder, and never after files on disk."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest

from bundle.data import FoundVolume
from bundle.inference import VolumeDataset, list_volumes


def names(root: Path, **options) -> list[str]:
    return [volume.name for volume in list_volumes(root, **options)]


def touch(root: Path, *files: str) -> Path:
    for file in files:
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        (root / file).touch()
    return root


def test_a_name_is_the_path_without_the_ending(tmp_path: Path):
    assert names(touch(tmp_path, "a/x.nii.gz", "b/x.NRRD", "v1.2.nii")) == ["a/x", "b/x", "v1.2"]


def test_volumes_that_differ_in_the_ending_only_keep_it(tmp_path: Path):
    assert names(touch(tmp_path, "x.nii.gz", "x.nrrd", "X.mha", "y.nii")) == ["X.mha", "x.nii.gz", "x.nrrd", "y"]


def test_hashed_names_tell_nothing_and_stay_the_same(tmp_path: Path):
    expected = hashlib.sha256(b"ward 7/jane doe.nii.gz").hexdigest()[:16]
    for root in (tmp_path / "one", tmp_path / "two"):
        assert names(touch(root, "ward 7/jane doe.nii.gz"), hash_names=True) == [expected]


def test_a_list_cannot_make_results_leave_the_folder(tmp_path: Path):
    listed = ["../a.nii.gz", "/a.nii.gz", "sub/../../b.nii.gz", "..", "c.nii.gz"]
    folder = tmp_path / "one/two"  # so that ".." is a folder of this test's own
    folder.mkdir(parents=True)
    (folder / "list.json").write_text(json.dumps({"training": listed}))
    given = names(folder / "list.json")
    assert len(set(given)) == len(listed)
    for name in given:
        assert (tmp_path / name).resolve().is_relative_to(tmp_path) and ".." not in Path(name).parts


def test_a_volume_that_fails_is_an_item_that_says_why(tmp_path: Path):
    file = tmp_path / "secret name.nii.gz"
    file.write_bytes(b"no image")

    def fails(item):
        raise OSError(f"cannot open {item['image'][0]}, nor {file.name}")

    (item,) = list(VolumeDataset(data=[FoundVolume("0123", (str(file),))], transform=fails))[:1]
    assert set(item) == {"name", "problem", "remedy"}
    assert "secret" not in item["problem"] and "cannot open 0123, nor 0123" in item["problem"]


def test_a_prepared_volume_has_its_seconds():
    dataset = VolumeDataset(data=[FoundVolume("a", ("f",), "CT")], transform=lambda item: item | {"image": np.ones(1)})
    item = dataset[0]
    assert item["name"] == "a" and item["modality"] == "CT" and item["seconds"] >= 0


@pytest.mark.parametrize("count", [0, 3])
def test_length_is_the_number_of_volumes(count: int):
    assert len(VolumeDataset(data=[FoundVolume("a", ())] * count, transform=dict)) == count
