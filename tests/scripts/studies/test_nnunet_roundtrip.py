# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""The way to nnU-Net by its own commands: plan, prepare, pre-train, export, train for two epochs, predict."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel
import nnunet_roundtrip
import numpy as np
import pytest
from fetch_nnunet import find_nnunet
from nnunet_roundtrip import main

from tests.scripts.studies.nnunet_commands import nnunet_commands

SIZE = (40, 40, 28)
#: a tiny network; slices are thicker than they are wide at the first level
PLAN = {
    "batch_size": 2,
    "patch_size": [16, 32, 32],
    "n_stages": 3,
    "features_per_stage": [4, 6, 8],
    "kernel_sizes": [[1, 3, 3], [3, 3, 3], [3, 3, 3]],
    "strides": [[1, 1, 1], [1, 2, 2], [2, 2, 2]],
    "n_blocks_per_stage": [1, 1, 1],
    "n_conv_per_stage_decoder": [1, 1],
}


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory, data_dir: Path) -> Path:
    """Three labelled parts of a real CT, with the liver, and one to predict."""
    folder = tmp_path_factory.mktemp("my data") / "Dataset007_Liver"
    image = nibabel.load(data_dir / "volumes/ct_body_totalseg.nii.gz")
    label = nibabel.load(data_dir / "labels/ct_body_totalseg.nii.gz")
    for number, corner in enumerate([(40, 24, 0), (56, 32, 1), (48, 40, 2), (60, 30, 0)]):
        box = tuple(slice(start, start + size) for start, size in zip(corner, SIZE))
        part, is_test = image.slicer[box], number == 3
        voxels = np.asarray(part.dataobj).astype(np.int16)
        save(voxels, part.affine, folder / ("imagesTs" if is_test else "imagesTr") / f"case {number}_0000.nii.gz")
        if not is_test:
            liver = (np.asarray(label.slicer[box].dataobj) == 5).astype(np.uint8)
            save(liver, part.affine, folder / "labelsTr" / f"case {number}.nii.gz")
    about = {"channel_names": {"0": "CT"}, "labels": {"background": 0, "liver": 1}, "numTraining": 3}
    (folder / "dataset.json").write_text(json.dumps({**about, "file_ending": ".nii.gz"}))
    return folder


def save(voxels: np.ndarray, affine: np.ndarray, file: Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(voxels, affine), file)


def test_the_six_commands_and_what_nnunet_has_loaded(
    raw: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    assert find_nnunet() is not None, "no nnU-Net: run `python scripts/fetch_nnunet.py` first"
    work = tmp_path / "work here"
    options = ["--raw", raw, "--work_dir", work, "--nnunet", find_nnunet(), "--threads", "1"]
    with nnunet_commands(find_nnunet().parent) as commands:
        monkeypatch.setattr(nnunet_roundtrip, "subprocess", commands)
        assert main([str(word) for word in [*options, "--change_plan", json.dumps(PLAN)]]) == 0, capsys.readouterr().err
    found = json.loads((work / "roundtrip.json").read_text())
    assert found["tensors"] > 100 and found["of_the_decoder"] > 0 and found["unequal"] == []
    assert found["same_by_the_trainers_own_loader"] and found["largest_difference_of_features"] <= 1e-6
    assert found["patch"] == [1, 1, *PLAN["patch_size"]]
    assert found["predicted"] == ["case 3_0000.nii.gz"] and found["trainer_loaded"] > 0
    # predicting begins a log, too
    log = "".join(file.read_text() for file in (work / "results").rglob("training_log_*.txt"))
    assert "sparse-mim: learning rate up to 0.001 in 1 epochs" in log and "Current learning rate: 0.001" in log
    plan = next((work / "preprocessed").rglob("nnUNetResEncUNetMPlans.json"))
    assert json.loads(plan.read_text())["configurations"]["3d_fullres"]["patch_size"] == PLAN["patch_size"]


def test_without_nnunet_there_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    words = ["--raw", tmp_path / "Dataset001_x", "--work_dir", tmp_path, "--nnunet", tmp_path]
    assert main([str(word) for word in words]) == 1
    error = capsys.readouterr().err
    assert "there is no nnU-Net in" in error and "scripts/fetch_nnunet.py" in error and error.count("\n") == 1
