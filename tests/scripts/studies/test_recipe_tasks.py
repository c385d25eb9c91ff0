# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
from __future__ import annotations

import json
from argparse import Namespace
from pathlib import Path

import nibabel
import numpy as np
import pytest
import yaml
from recipe_tasks import CHANGES, ROOT, SMALL_DETECTOR, TASKS, draw_balanced, find_box, find_large, main

NAMES = [f"p{number}.nii.gz" for number in range(6)]


@pytest.fixture
def people(tmp_path: Path) -> Path:
    """Six volumes of a bright block, the larger the higher their number."""
    for part in ("imagesTr", "labelsTr"):
        (tmp_path / "blocks" / part).mkdir(parents=True)
    for number, name in enumerate(NAMES):
        label = np.zeros((30, 30, 30), dtype=np.uint8)
        label[5 : 12 + 2 * number, 5:20, 5:20] = 1 + number % 2
        noise = np.random.default_rng(number).normal(0, 5, label.shape)
        for part, voxels in (("images", (100 + 60 * (label > 0) + noise).astype(np.float32)), ("labels", label)):
            nibabel.save(nibabel.Nifti1Image(voxels, np.eye(4)), tmp_path / f"blocks/{part}Tr/{name}")
    (tmp_path / "split.json").write_text(json.dumps({"dev": NAMES[:2] + NAMES[4:], "test": NAMES[2:4]}))
    return tmp_path


def command(task: str, folder: Path, *more: str) -> list[str]:
    words = [task, "--dataset_dir", folder / "blocks", "--split", folder / "split.json", "--labelled", "2"]
    words += ["--steps", "2", "--steps_per_epoch", "1", "--crop", "32", "32", "32", "--cache_dir", folder / "cache"]
    return [str(word) for word in [*words, "--seeds", "0", "--output", folder / "runs.jsonl", *more]]


def test_large_is_above_the_median_in_mm3(people: Path):
    assert list(find_large(people / "blocks", NAMES).values()) == [0, 0, 0, 1, 1, 1]
    file = people / "blocks/labelsTr/p0.nii.gz"  # voxels of 8 mm³ make the smallest the largest
    nibabel.save(nibabel.Nifti1Image(np.asarray(nibabel.load(file).dataobj), np.diag([2, 2, 2, 1])), file)
    assert list(find_large(people / "blocks", NAMES).values()) == [1, 0, 0, 0, 1, 1]


def test_half_of_the_drawn_people_have_the_finding():
    large = {name: number % 2 for number, name in enumerate(NAMES)}
    options = Namespace(large=large, split_lists={"dev": NAMES}, labelled=4)
    for seed in range(4):
        drawn = draw_balanced(options, seed)
        assert len(set(drawn)) == 4 and sum(large[name] for name in drawn) == 2
        assert drawn == draw_balanced(options, seed)
    assert len(draw_balanced(Namespace(**vars(options) | {"labelled": 3}), 0)) == 3


def test_a_box_holds_the_voxels_of_its_class_in_the_world():
    voxels = np.zeros((8, 8, 8), dtype=np.uint8)
    voxels[2:5, 1:7, 3] = 2
    affine = np.array([[0, -2.0, 0, 10], [1.0, 0, 0, 20], [0, 0, 4.0, 30], [0, 0, 0, 1]])  # j runs to the left
    label = nibabel.Nifti1Image(voxels, affine)
    # x = 10 - 2j from j = 0.5 to 6.5, y = 20 + i from i = 1.5 to 4.5, z = 30 + 4k from k = 2.5 to 3.5
    assert find_box(label, 2) == [3.0, 23.0, 42.0, 12.0, 3.0, 4.0]
    assert find_box(label, 1) is None


@pytest.mark.parametrize("task", ["classification", "detection"])
def test_arms_run_and_are_not_repeated(people: Path, capsys, task: str):
    more = ["--classes", "{thin: 1, thick: 2}"] if task == "detection" else []
    arms = ["config", "config + no mirror + warm-up of a tenth"][task == "detection" :]  # one will do there
    assert main(command(task, people, *more, "--arms", *arms)) == 0
    rows = [json.loads(line) for line in (people / "runs.jsonl").read_text().splitlines()]
    assert [row["arm"] for row in rows] == arms
    figures = [row[TASKS[task].metric] for row in rows]
    if task == "classification":
        assert all(figure in (0, 0.5, 1) for figure in figures), "two people, one with the finding"
    assert all(0 <= figure <= 1 for figure in figures)
    assert "| config + no mirror + warm-up of a tenth |" in capsys.readouterr().out
    assert main(command(task, people, *more, "--arms", *arms[:1])) == 0
    assert len((people / "runs.jsonl").read_text().splitlines()) == len(arms)


@pytest.mark.parametrize("task", ["classification", "detection"])
def test_the_changes_are_of_the_config(task: str):
    content = yaml.safe_load((ROOT / "configs" / TASKS[task].config).read_text())
    changes = [*CHANGES.values(), *TASKS[task].changes.values(), SMALL_DETECTOR if task == "detection" else {}]
    for key in {key for change in changes for key in change} - {"pretrained"}:
        place = content
        for part in key.split("#")[:-1]:
            place = place[int(part) if isinstance(place, list) else part]
        assert key.split("#")[-1] in place, key
    steps = content["train"]["preprocessing"]["transforms"]
    assert "RandAffined" in steps[2]["_target_"] if task == "classification" else "RandZoomBoxd" in steps[1]["_target_"]


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--arms", "config + nothing"], "--arms 'config + nothing' is not known: give config, or config + all"),
        (
            ["--arms", "config + shipped weights"],
            "--arms 'config + shipped weights' is not known",
        ),  # of another encoder
        (["--steps", "3", "--steps_per_epoch", "2"], "--steps 3 is no multiple of --steps_per_epoch 2: change either"),
        ([], "--classes is missing: detection needs the values of the label maps"),
    ],
)
def test_what_cannot_be_measured_is_refused(people: Path, capsys, more: list[str], said: str):
    assert main(command("detection", people, *more)) == 1
    assert said in capsys.readouterr().err
