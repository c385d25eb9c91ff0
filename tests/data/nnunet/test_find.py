# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest

from bundle.data.nnunet import Plan, find_cases, read_plan
from bundle.errors import UserError
from tests.data.nnunet.folders import plan, write_case, write_plan, write_scans


@pytest.fixture
def chosen(tmp_path: Path) -> Plan:
    return read_plan(write_plan(tmp_path / "plan"))


@pytest.mark.parametrize("kind", ["b2nd", "npz", "npy"])
def test_cases_are_found_in_the_folder_and_from_the_one_above(kind: str, chosen: Plan, tmp_path: Path):
    folder = tmp_path / "Dataset 5/nnUNetPlans_3d_fullres"
    for name in ("two", "one", "one_seg_of_three"):
        write_case(folder, name, np.zeros((2, 4, 4, 4)), kind)
    ending = "npz" if kind == "npy" else kind
    for place in (folder, folder.parent):
        found = find_cases(place, plan=chosen)
        assert sorted(case.name for case in found) == [
            f"{name}.{ending}" for name in ("one", "one_seg_of_three", "two")
        ]
        assert {case.modality for case in found} == {"MR"}


def test_another_folders_name_is_said(chosen: Plan, tmp_path: Path, caplog: pytest.LogCaptureFixture):
    write_case(tmp_path / "nnUNetPlans_3d_lowres", "one", np.zeros((2, 4, 4, 4)))
    with caplog.at_level(logging.WARNING):
        assert len(find_cases(tmp_path / "nnUNetPlans_3d_lowres", plan=chosen)) == 1
    assert "preprocessed into nnUNetPlans_3d_fullres: see that they belong together" in caplog.text


def test_files_of_one_case_are_its_channels(chosen: Plan, tmp_path: Path):
    for name in ("a", "b.c"):
        write_scans(tmp_path / "raw", name)
    write_scans(tmp_path / "raw", "alone", channels=1)
    alone, *whole = sorted(find_cases(tmp_path / "raw", plan=chosen), key=lambda case: case.name != "alone.nii.gz")
    assert alone.left_out == ("has the channels _0000, and the plan wants 2", "put all channels into one folder")
    assert [case.name for case in whole] == ["a.nii.gz", "b.c.nii.gz"]
    for case in whole:
        files = [Path(file).name for file in (*case.files, *case.channels[0])]
        assert files == [case.name.replace(".nii.gz", f"_000{channel}.nii.gz") for channel in range(2)]


def test_scans_of_one_channel_keep_their_names(tmp_path: Path):
    one = read_plan(write_plan(tmp_path, plan(schemes=("ZScoreNormalization",), masked=(False,))))
    write_scans(tmp_path / "raw", "a", channels=1)
    assert [case.name for case in find_cases(tmp_path / "raw", plan=one)] == ["a_0000.nii.gz"]


def test_an_empty_folder_is_one_line(chosen: Plan, tmp_path: Path):
    with pytest.raises(UserError, match="holds no NIfTI"):
        find_cases(tmp_path / "plan", plan=chosen)
