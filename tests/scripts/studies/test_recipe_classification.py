# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
from __future__ import annotations

import json
from pathlib import Path

import nibabel
import numpy as np
import pytest
import yaml
from recipe_classification import CHANGES, ROOT, draw_people, find_large, main

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


def command(folder: Path, *more: str) -> list[str]:
    words = ["--dataset_dir", folder / "blocks", "--split", folder / "split.json", "--labelled", "2", "--steps", "2"]
    words += ["--steps_per_epoch", "1", "--crop", "32", "32", "32", "--cache_dir", folder / "cache"]
    return [str(word) for word in [*words, "--seeds", "0", "--output", folder / "runs.jsonl", *more]]


def test_large_is_above_the_median_in_mm3(people: Path):
    assert list(find_large(people / "blocks", NAMES).values()) == [0, 0, 0, 1, 1, 1]
    file = people / "blocks/labelsTr/p0.nii.gz"  # voxels of 8 mm³ make the smallest the largest
    nibabel.save(nibabel.Nifti1Image(np.asarray(nibabel.load(file).dataobj), np.diag([2, 2, 2, 1])), file)
    assert list(find_large(people / "blocks", NAMES).values()) == [1, 0, 0, 0, 1, 1]


def test_half_of_the_drawn_people_have_the_finding():
    large = {name: number % 2 for number, name in enumerate(NAMES)}
    for seed in range(4):
        drawn = draw_people(large, NAMES, 4, seed)
        assert len(set(drawn)) == 4 and sum(large[name] for name in drawn) == 2
        assert drawn == draw_people(large, NAMES, 4, seed)
    assert len(draw_people(large, NAMES, 3, 0)) == 3


def test_arms_run_and_are_not_repeated(people: Path, capsys):
    assert main(command(people, "--arms", "config", "config + no mirror + warm-up of a tenth")) == 0
    rows = [json.loads(line) for line in (people / "runs.jsonl").read_text().splitlines()]
    assert [row["arm"] for row in rows] == ["config", "config + no mirror + warm-up of a tenth"]
    assert all(row["auc"] in (0, 0.5, 1) for row in rows), "two people, one with the finding"
    assert "| config + no mirror + warm-up of a tenth |" in capsys.readouterr().out
    assert main(command(people, "--arms", "config")) == 0
    assert len((people / "runs.jsonl").read_text().splitlines()) == 2


def test_the_changes_are_of_the_config():
    content = yaml.safe_load((ROOT / "configs/finetune_classification.yaml").read_text())
    for key in {key for change in CHANGES.values() for key in change}:
        place = content
        for part in key.split("#"):
            place = place[int(part) if isinstance(place, list) else part]
    assert "RandAffined" in content["train"]["preprocessing"]["transforms"][2]["_target_"]


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--arms", "config + nothing"], "--arms 'config + nothing' is not known: give config, or config + all"),
        (["--steps", "3", "--steps_per_epoch", "2"], "--steps 3 is no multiple of --steps_per_epoch 2: change either"),
    ],
)
def test_what_cannot_be_measured_is_refused(people: Path, capsys, more: list[str], said: str):
    assert main(command(people, *more)) == 1
    assert said in capsys.readouterr().err
