# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
from __future__ import annotations

import json
import sys
from pathlib import Path

import nibabel
import numpy as np
import pytest
from nnunet_peer import main
from recipe import draw_people

# Stand-ins for nnU-Net's commands: they keep what they were given, and leave what nnU-Net would.
#: begins a script of this Python, as pip's do where its path has a space, which no `#!` can name
START = f"""#!/bin/sh
'''exec' "{sys.executable}" "$0" "$@"
' '''
"""
PLAN = """
import json, os, pathlib, sys
folder = pathlib.Path(os.environ["nnUNet_preprocessed"]) / "Dataset001_peer"
folder.mkdir(parents=True)
plans = {"configurations": {"3d_fullres": {"batch_size": 9}}}
(folder / "nnUNetPlans.json").write_text(json.dumps(plans))
"""
TRAIN = """
import json, os, pathlib, sys
raw, prepared = (pathlib.Path(os.environ[f"nnUNet_{part}"]) / "Dataset001_peer" for part in ("raw", "preprocessed"))
seen = {"words": sys.argv[1:], "minutes": os.environ["PEER_MINUTES"], "threads": os.environ["OMP_NUM_THREADS"]}
seen["trainer"] = sorted(file.stem for file in pathlib.Path(os.environ["nnUNet_extTrainer"]).glob("*.py"))
seen["plans"] = json.loads((prepared / "nnUNetPlans.json").read_text())
seen["dataset"] = json.loads((raw / "dataset.json").read_text())
seen["files"] = sorted(str(file.relative_to(raw)) for file in raw.rglob("*.nii.gz"))
pathlib.Path(KEPT).write_text(json.dumps(seen))
print("2026-01-01: peer: 7 steps in 300 s")
"""
PREDICT = """
import pathlib, sys, nibabel
words = dict(zip(sys.argv[1::2], sys.argv[2::2]))
pathlib.Path(words["-o"]).mkdir()
for file in pathlib.Path(words["-i"]).iterdir():  # the image is the label map here
    nibabel.save(nibabel.load(file), pathlib.Path(words["-o"]) / file.name.replace("_0000", ""))
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Five volumes that are their own label maps, but for the class 2 of the last; and the commands of an nnU-Net."""
    for part in ("imagesTr", "labelsTr"):
        (tmp_path / "blocks" / part).mkdir(parents=True)
    label = np.zeros((6, 6, 6), dtype=np.uint8)
    label[:2], label[2:4] = 1, 2
    for number in range(5):
        found = np.where(label == 2, 0, label).astype(np.uint8) if number == 4 else label
        for part, voxels in (("images", found), ("labels", label)):
            nibabel.save(nibabel.Nifti1Image(voxels, np.eye(4)), tmp_path / f"blocks/{part}Tr/p{number}.nii.gz")
    names = [f"p{number}.nii.gz" for number in range(5)]
    (tmp_path / "split.json").write_text(json.dumps({"dev": names[:3], "test": names[3:]}))
    kept = f"KEPT = {str(tmp_path / 'seen.json')!r}\n"
    (tmp_path / "bin").mkdir()
    for name, code in (("plan_and_preprocess", PLAN), ("train", kept + TRAIN), ("predict", PREDICT)):
        (tmp_path / f"bin/nnUNetv2_{name}").write_text(START + code)
        (tmp_path / f"bin/nnUNetv2_{name}").chmod(0o755)
    return tmp_path


def command(folder: Path, *more: str) -> list[str]:
    words = ["--nnunet", folder / "bin", "--dataset_dir", folder / "blocks", "--split", folder / "split.json"]
    words += ["--classes", "{left: 1, right: 2}", "--labelled", 2, "--seed", 3, "--minutes", 5]
    return [str(word) for word in [*words, "--output", folder / "peer.jsonl", *more]]


def test_nnunet_trains_on_the_people_of_the_seed_and_is_measured_as_the_arms_are(folder: Path):
    assert main(command(folder, "--batch_size", "2")) == 0
    row = json.loads((folder / "peer.jsonl").read_text())
    assert row.pop("seconds") >= 0
    assert row == {"data": "blocks", "people": 2, "labelled": 2, "steps": 7, "seed": 3, "dice": [1.0, 0.5],
                   "arm": "nnU-Net, ExperimentPlanner, batch 2, 5 min"}  # fmt: skip
    seen = json.loads((folder / "seen.json").read_text())
    people = draw_people(json.loads((folder / "split.json").read_text()), 2, 3)
    images = [f"imagesTr/{name.removesuffix('.nii.gz')}_0000.nii.gz" for name in people]
    assert seen["files"] == sorted(
        [*images, *(f"labelsTr/{name}" for name in people), "imagesTs/p3_0000.nii.gz", "imagesTs/p4_0000.nii.gz"]
    )
    assert seen["dataset"]["labels"] == {"background": 0, "left": 1, "right": 2}
    assert seen["dataset"]["numTraining"] == 2
    assert seen["plans"]["configurations"]["3d_fullres"]["batch_size"] == 2
    assert (seen["minutes"], seen["threads"]) == ("5.0", "1")
    assert seen["words"][seen["words"].index("-tr") + 1] in seen["trainer"]


def test_a_command_that_fails_is_named_with_its_last_line(folder: Path, capsys):
    (folder / "bin/nnUNetv2_train").write_text(START + "raise ValueError('no such device')")
    assert main(command(folder)) == 1
    assert "nnUNetv2_train failed, it says: ValueError: no such device" in capsys.readouterr().err
    assert not (folder / "peer.jsonl").exists()


def test_an_nnunet_that_does_not_know_the_trainer_is_refused(folder: Path, capsys):
    (folder / "bin/nnUNetv2_train").write_text(START + "print('trained as usual')")
    assert main(command(folder)) == 1
    assert "install nnunetv2 >= 2.8" in capsys.readouterr().err
