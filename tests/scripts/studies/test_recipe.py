# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
from __future__ import annotations

import json
import math
import random
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser
from recipe import CHANGES, CONFIG, draw_people, main, table
from scipy.stats import ttest_1samp

from bundle.training.trial import evaluate

PLAIN = """
import argparse, json, sys
parser = argparse.ArgumentParser()
for name in ("folder", "split"):
    parser.add_argument(name)
for name in ("--labelled", "--seed", "--steps", "--classes"):
    parser.add_argument(name, type=int)
parser.add_argument("--crop", type=int, nargs=3)
args = parser.parse_args()
assert (args.labelled, args.steps, args.crop, args.classes) == (2, 2, [32, 32, 32], 3)
assert json.load(open(args.split))["test"] == ["p3.nii.gz", "p4.nii.gz"]
print(f"labelled 2 seed {args.seed} steps 2: Dice 0.6000 [0.5 0.7] in 1 s")
"""


@pytest.fixture
def people(tmp_path: Path) -> Path:
    """Five volumes of two bright blocks, each with its own noise."""
    for part in ("imagesTr", "labelsTr"):
        (tmp_path / "blocks" / part).mkdir(parents=True)
    label = np.zeros((34, 36, 30), dtype=np.uint8)
    label[8:16, 8:28, 6:24], label[16:26, 8:28, 6:24] = 1, 2
    for number in range(5):
        noise = np.random.default_rng(number).normal(0, 5, label.shape)
        image = (100 + 60 * (label == 1) + 120 * (label == 2) + noise).astype(np.float32)
        for part, voxels in (("images", image), ("labels", label)):
            nibabel.save(nibabel.Nifti1Image(voxels, np.eye(4)), tmp_path / f"blocks/{part}Tr/p{number}.nii.gz")
    names = [f"p{number}.nii.gz" for number in range(5)]
    (tmp_path / "split.json").write_text(json.dumps({"dev": names[:3], "test": names[3:]}))
    (tmp_path / "plain.py").write_text(PLAIN)
    return tmp_path


def command(folder: Path, *more: str) -> list[str]:
    words = ["--dataset_dir", folder / "blocks", "--split", folder / "split.json", "--plain", folder / "plain.py"]
    words += ["--classes", "{left: 1, right: 2}", "--labelled", "2", "--steps", "2", "--steps_per_epoch", "1"]
    words += ["--crop", "32", "32", "32", "--cache_dir", folder / "cache", "--output", folder / "runs.jsonl", *more]
    return [str(word) for word in words]


def read(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "runs.jsonl").read_text().splitlines()]


def test_arms_run_on_the_same_people_and_are_not_repeated(people: Path, capsys):
    arms = ["plain", "config", "config + mirrors left to right + whole-volume z-score"]
    assert main(command(people, "--seeds", "1", "--arms", *arms)) == 0
    rows = read(people)
    assert [(row["arm"], row["seed"], row["people"]) for row in rows] == [(arm, 1, 2) for arm in arms]
    assert rows[0]["dice"] == [0.5, 0.7]
    assert all(len(row["dice"]) == 2 and min(row["dice"]) >= 0 for row in rows)
    capsys.readouterr()
    assert main(command(people, "--seeds", "1", "2", "--arms", *arms[::2])) == 0
    assert read(people)[:3] == rows and len(read(people)) == 5
    out = capsys.readouterr().out
    assert "| plain | 60.0 | 1: 60.0, 2: 60.0 | 50.0, 70.0 |" in out and "| config |" not in out
    assert str(people) not in (people / "runs.jsonl").read_text()


def test_seeds_draw_people_as_the_plain_script_does():
    split = {"dev": [f"p{number}" for number in range(20)], "test": []}
    assert draw_people(split, 5, 3) == random.Random(103).sample(split["dev"], 5)


def test_whole_volumes_are_measured_per_class():
    image = torch.zeros(1, 24, 20, 18)
    image[:, 4:12], image[:, 12:15] = 1, 2
    label = torch.zeros(1, 24, 20, 18, dtype=torch.uint8)
    label[:, 6:12], label[:, 12:18] = 1, 2

    class Volume:
        def load(self, keys):  # noqa: ARG002 - the signature of a volume
            return {"image": image, "label": label}

    class Thresholds(torch.nn.Module):
        def forward(self, image):
            return [-50 * (image - torch.arange(4.0).view(1, 4, 1, 1, 1)) ** 2, None]  # the finest output is the first

    (found,) = evaluate(Thresholds(), [Volume()], [16, 16, 16], 3)
    assert found == pytest.approx([2 * 6 / (8 + 6), 2 * 3 / (3 + 6), math.nan], nan_ok=True)


def test_the_table_pairs_arms_by_seed():
    def rows(arm, dice):
        return [{"arm": arm, "seed": seed, "dice": [value, value + 0.1]} for seed, value in dice.items()]

    lines = table(rows("plain", {0: 0.5, 1: 0.6, 2: 0.4}) + rows("config", {2: 0.5, 0: 0.55, 1: 0.63}), "plain")
    p = ttest_1samp([5, 3, 10], 0).pvalue  # a paired test is one of the differences
    assert f"| +6.0 (+5.0, +3.0, +10.0) | {p:.2g} |" in lines.splitlines()[-1]
    assert f"| plain | {np.mean([55, 65, 45]):.1f} | 0: 55.0, 1: 65.0, 2: 45.0 | 50.0, 60.0 |  |  |" in lines


@pytest.mark.parametrize("name", CHANGES)
def test_every_change_changes_something_that_is_there(name: str):
    parser = ConfigParser(ConfigParser.load_config_file(CONFIG))
    for key, value in CHANGES[name].items():
        above, _, last = key.rpartition("#")
        assert key in parser or (last in ("prob", "std", "factors", "offsets", "margin") and above in parser)
        assert parser.get(key) != value


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--arms", "config + wings"], "--arms 'config + wings' is not known"),
        (["--arms", "scratch"], "--arms 'scratch' is not known"),
        (["--steps", "5", "--steps_per_epoch", "2"], "--steps 5 is no multiple of --steps_per_epoch 2"),
        (["--classes", "{left: 6}"], "--classes {'left': 6} does not fit"),
    ],
)
def test_what_cannot_be_measured_is_refused(people: Path, capsys, more, message):
    assert main(command(people, *more)) == 1
    assert message in capsys.readouterr().err


def test_a_plain_script_that_fails_is_named_with_its_last_line(people: Path, capsys):
    (people / "plain.py").write_text("raise ValueError('no such network')")
    assert main(command(people, "--arms", "plain", "--seeds", "0")) == 1
    assert "ValueError: no such network" in capsys.readouterr().err
    assert not (people / "runs.jsonl").exists()
