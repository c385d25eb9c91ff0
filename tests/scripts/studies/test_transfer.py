# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
from __future__ import annotations

import functools
import json
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
import transfer_tasks
from scipy.stats import ttest_1samp
from transfer import main, recorded_recipe, table
from transfer_tasks import TASKS, threshold_dice, write_task

from bundle.networks import build_encoder

SETTINGS = {"init_filters": 4, "blocks_down": [1, 1, 1, 1, 1], "norm": ["instance", {"affine": True}]}


def run(arm, seed, dice, steps=50):
    return {
        "task": "brain", "labels": "half", "arm": arm, "steps": steps, "seed": seed,
        "dice": {"ixi": [dice, dice], "other side": [dice, dice + 0.1]}, "curve": [[steps, dice]], "losses": [1.0],
    }  # fmt: skip


def test_the_table_pairs_arms_by_seed_and_tests_their_differences():
    scratch = [run("scratch", 0, 0.5), run("scratch", 1, 0.6), run("scratch", 2, 0.4)]
    other = [run("pretrained", 2, 0.5), run("pretrained", 0, 0.55), run("pretrained", 1, 0.63)]
    row = table(scratch + other).splitlines()[-1]
    p = ttest_1samp([5, 3, 10], 0).pvalue  # a paired test is one of the differences
    assert "| scratch | +6.0 (+5.0, +3.0, +10.0) |" in row
    assert f"| {p:.3g} |" in row
    assert f"{np.mean([55, 63, 50]) + 2.5:.1f}" in row, "the mean over volumes and classes"


@pytest.fixture(scope="module")
def work_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What is written of the chest, which takes seconds, is used again."""
    return tmp_path_factory.mktemp("work")


def test_parts_to_train_and_to_test_on_lie_on_two_sides_with_a_gap(
    data_dir: Path, work_dir: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("transfer_tasks._chest", functools.cache(transfer_tasks._chest))  # which takes seconds
    for seed, towards in ((0, "left"), (1, "right")):
        listed = json.loads(write_task(TASKS["chest"], "half", seed, data_dir, work_dir / "tasks").read_text())
        sides = {}
        for part in ("training", "validation"):
            image = nibabel.load(work_dir / "tasks" / listed[part][0]["image"])
            label = nibabel.load(work_dir / "tasks" / listed[part][0]["label"])
            assert image.shape == label.shape and np.allclose(image.affine, label.affine)
            corners = [
                image.affine @ [*(np.array(bits) * (np.array(image.shape) - 1)), 1] for bits in np.ndindex(2, 2, 2)
            ]
            sides[part] = sorted(corner[0] for corner in corners)
            assert set(np.unique(label.dataobj)) == set(range(6))
        # x grows towards the patient's right in RAS: the left side has the smaller x
        left, right = (sides["training"], sides["validation"])[:: 1 if towards == "left" else -1]
        assert right[0] - left[-1] > 9


def test_runs_have_the_rate_of_the_recorded_ones(tmp_path: Path):
    model = tmp_path / "model.pt"
    arms = ["pretrained", "pretrained, sawtooth", "encoder alone", "scratch", "scratch, frozen"]
    assert [recorded_recipe(arm, 1, model)["lr"] for arm in arms] == [1e-3] * 5
    (tmp_path / "model_decoder.pt").touch()
    assert [recorded_recipe(arm, 1, model)["lr"] for arm in arms] == [3e-4, 3e-4, 1e-3, 1e-3, 1e-3]


def test_two_thresholds_find_tissue_that_differs_in_intensity():
    label = np.repeat([0, 1, 2, 3], 100)
    image = np.repeat([50.0, 10.0, 20.0, 30.0], 100) + np.linspace(-3, 3, 400)
    assert threshold_dice(image, label) == [1.0, 1.0, 1.0]


def test_both_arms_run_and_are_not_repeated(data_dir: Path, work_dir: Path, tmp_path: Path, capsys):
    torch.manual_seed(0)
    torch.save(build_encoder("SegResEncoder", **SETTINGS).network_state_dict(), tmp_path / "model.pt")
    about = {"encoder": {"name": "SegResEncoder", **SETTINGS}, "spacing": [6, 6, 6]}
    about |= {"ct_window": [-1000, 1000], "mr_percentiles": [0.5, 99.5]}
    (tmp_path / "model.json").write_text(json.dumps(about))
    command = ["--pretrained", str(tmp_path / "model.pt"), "--data_dir", str(data_dir), "--work_dir", str(work_dir)]
    command += ["--json", str(tmp_path / "runs.json"), "--task", "chest", "--steps", "0", "2", "--validate_every", "1"]
    command += ["--crop", "32", "--device", "cpu", "--arms", "scratch", "pretrained, sawtooth"]
    assert main([*command, "--seeds", "1"]) == 0
    first = json.loads((tmp_path / "runs.json").read_text())
    assert [r["arm"] for r in first] == 2 * ["scratch", "pretrained, sawtooth"]
    assert [[step for step, _ in r["curve"]] for r in first] == [[0], [0], [1, 2], [1, 2]]
    assert [len(r["losses"]) for r in first] == [1, 1, 2, 2]
    assert all(0 <= d <= 1 for r in first for row in r["dice"].values() for d in row)
    assert (tmp_path / "runs.png").stat().st_size > 0
    capsys.readouterr()
    assert main([*command, "--seeds", "1"]) == 0
    assert json.loads((tmp_path / "runs.json").read_text()) == first
    assert "| chest | half | 2 | scratch |" in capsys.readouterr().out
    assert main([*command, "--seeds", "1", "--recipe", "today"]) == 1, "runs of two recipes are not mixed"
    assert "has runs of another --recipe: name another file" in capsys.readouterr().err
    few = ["--recipe", "today", "--json", str(tmp_path / "today.json"), "--steps", "0", "--arms", "scratch"]
    assert main([*command, "--seeds", "1", *few]) == 0
    assert [r["recipe"] for r in json.loads((tmp_path / "today.json").read_text())] == ["today"]


def test_weights_without_their_settings_are_refused(tmp_path: Path, capsys):
    assert main(["--pretrained", str(tmp_path / "none.pt")]) == 1
    assert "has no json beside it" in capsys.readouterr().err


@pytest.mark.parametrize("labels", ["quarter", "all"])
def test_an_unknown_label_budget_is_refused(tmp_path: Path, capsys, labels):
    (tmp_path / "model.json").write_text("{}")
    assert main(["--pretrained", str(tmp_path / "model.pt"), "--task", "chest", "--labels", labels]) == 1
    assert f"--labels {labels} is not one of half" in capsys.readouterr().err


@pytest.mark.parametrize("steps", ["75", "-1"])
def test_a_budget_that_would_be_rounded_is_refused(tmp_path: Path, capsys, steps):
    (tmp_path / "model.json").write_text("{}")
    command = ["--pretrained", str(tmp_path / "model.pt"), "--steps", "50", steps, "--validate_every", "50"]
    assert main(command) == 1
    assert f"--steps {steps} must be up to --validate_every (50) or a multiple of it" in capsys.readouterr().err


def test_volumes_that_were_not_fetched_are_named_with_the_command_that_does(tmp_path: Path, capsys):
    (tmp_path / "model.json").write_text("{}")
    command = ["--pretrained", tmp_path / "model.pt", "--data_dir", tmp_path / "empty", "--work_dir", tmp_path]
    assert main([*map(str, command), "--json", str(tmp_path / "runs.json")]) == 1
    (last,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert "mr_brain_mni152.nii.gz is missing" in last and "fetch_data.py --all" in last
