# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""bundle/data/file_parts.py: the files of a volume whose header and voxels lie in several."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from bundle.archive import update_index
from bundle.data import find_volumes, read_volume
from bundle.data.file_parts import all_files, holds_a_volume, voxel_files
from tests.data.volumes import mr_phantom, write_nifti, write_pair

PAIRS = [(".hdr", ".img"), (".mhd", ".raw"), (".nhdr", ".raw")]


@pytest.mark.parametrize("endings", PAIRS)
def test_the_voxels_of_a_header_are_found(endings: tuple[str, str], tmp_path: Path) -> None:
    header = write_pair(tmp_path, endings)
    assert np.array_equal(read_volume([str(header)], "t1")[0], mr_phantom())
    assert all_files(header) == [header, tmp_path / f"t1{endings[1]}"] and holds_a_volume(header)
    (tmp_path / f"t1{endings[1]}").unlink()
    assert all_files(header) == [header]


def test_a_volume_in_one_file_is_that_file(tmp_path: Path) -> None:
    for file in (write_nifti(tmp_path / "a.nii", mr_phantom()), tmp_path / "a.mgz", tmp_path / "slice.dcm"):
        assert all_files(file) == voxel_files(file) == [file]
    assert not holds_a_volume(tmp_path / "slice.dcm") and not holds_a_volume(tmp_path / "alone.hdr")


def test_a_pair_in_capitals_is_one(tmp_path: Path) -> None:
    header = write_pair(tmp_path, (".hdr", ".img"))
    header.rename(tmp_path / "T1.HDR")
    (tmp_path / "t1.img").rename(tmp_path / "T1.IMG")
    (found,) = find_volumes(tmp_path)
    assert np.array_equal(read_volume(found.files, "T1")[0], mr_phantom())
    assert all_files(found.files[0])[1:] == [tmp_path / "T1.IMG"]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.mhd", "NDims = 3\nElementDataFile = LIST\none 1.raw\ntwo.raw\n"),
        ("a.nhdr", "NRRD0004\ndimension: 3\ndata file: LIST 2\none 1.raw\ntwo.raw\n"),
        ("b.nhdr", "NRRD0004\ndimension: 3\ndata file: %03d.raw 1 3 2\n\n"),
        ("c.mhd", "NDims = 3\nElementDataFile = %03d.raw 1 3 2\n"),
        ("d.mhd", "NDims = 3\nElementDataFile = 100%_%d.raw\n"),
    ],
)
def test_voxels_in_several_files(name: str, text: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(text)
    expected = {"a": ["one 1.raw", "two.raw"], "d": ["100%_%d.raw"]}.get(name[0], ["001.raw", "003.raw"])
    assert voxel_files(tmp_path / name) == [tmp_path / file for file in expected]


@pytest.mark.parametrize("endings", PAIRS)
def test_an_index_keeps_volumes_with_equal_headers_and_sees_new_voxels(
    endings: tuple[str, str], tmp_path: Path
) -> None:
    root, index = tmp_path / "archive", tmp_path / "index.sqlite"
    for person in range(3):
        write_pair(root / f"{person}", endings, seed=person)
    update_index(index, root, processes=0)
    assert [volume.left_out for volume in find_volumes(index)] == [("", "")] * 3
    write_pair(tmp_path / "other", endings, seed=0)
    voxels = f"t1{endings[1]}"
    (root / "2" / voxels).write_bytes((tmp_path / "other" / voxels).read_bytes())  # now a copy of the first
    assert update_index(index, root, processes=0).series == 1
    assert [volume.left_out[0] != "" for volume in find_volumes(index)] == [False, False, True]
    assert not update_index(index, root, processes=0).changed
