# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""scripts/cross_validate.py: which folds are trained, what is gathered, and what a failure does."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import cross_validate
import nibabel
import numpy as np
import pytest
import yaml
from cross_validate import main
from cross_validate_parts.gather import _note_folds
from cross_validate_parts.plan import Plan
from cross_validate_parts.trainings import Trainings
from monai.bundle import ConfigWorkflow

from bundle.prediction import FineTuned

ROOT = Path(__file__).parents[2]
CLASSIFICATION = str(ROOT / "configs/finetune_classification.yaml")

#: trains in no time: what a run of classification leaves, of two scans for each fold
TRAINER = """
import json, os, pathlib, sys, time
folder, fold, started = pathlib.Path(sys.argv[1]), int(sys.argv[2]), pathlib.Path(sys.argv[3])
(started / f"{fold}_{len(list(started.iterdir()))}").touch()
if (started.parent / f"break_{fold}").exists():
    print("some words"); print("error: --crop_size 7 does not fit: give another one"); print("more words"); sys.exit(1)
if (started.parent / f"kill_{fold}").exists():
    os.kill(os.getpid(), 9)
deadline = time.monotonic() + 20
while (started.parent / "together").exists() and len(list(started.iterdir())) < 2 and time.monotonic() < deadline:
    time.sleep(0.02)
folder.mkdir(parents=True, exist_ok=True)
(folder / "metrics.csv").write_text(f"epoch,seconds,validation/auc\\n1,1,0.{fold}1\\n2,1,0.{fold}2\\n")
rows = [f"scan {2 * fold + n},{0.2 + 0.5 * n + 0.01 * fold},{n}" for n in range(2)]
(folder / "predictions.csv").write_text("\\n".join(["volume,stenosis,stenosis label", *rows]) + "\\n")
counts = {"CT": 0, "MR": 4}
volumes = {"training": counts, "validation": {"CT": 0, "MR": 2}}
about = {"task": "classification", "findings": ["stenosis"], "epoch": 2, "volumes": volumes}
(folder / "model.json").write_text(json.dumps(about))
(folder / "model.pt").touch()
"""


@pytest.fixture
def trainer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Replaces trainings; the folder tells which were started."""
    (tmp_path / "started").mkdir()
    (tmp_path / "my scans").mkdir()
    table = ["image,stenosis,part", *(f"scan {n},{n % 2},training" for n in range(6)), "other,1,test"]
    (tmp_path / "my scans/labels.csv").write_text("\n".join(table) + "\n")
    (tmp_path / "trainer.py").write_text(TRAINER)

    def command(plan: Plan, fold: int) -> list[str]:
        return [sys.executable, str(tmp_path / "trainer.py"), str(plan.folder(fold).path), str(fold),
                str(tmp_path / "started")]  # fmt: skip

    monkeypatch.setattr(Plan, "command", command)
    return tmp_path


@pytest.fixture
def without_results(monkeypatch: pytest.MonkeyPatch) -> None:
    """Gathers nothing, which takes seconds."""
    monkeypatch.setattr(cross_validate, "gather", lambda _: [])


def run(folder: Path, *more: str) -> int:
    given = ["--config_file", CLASSIFICATION, "--dataset_dir", str(folder / "my scans"), "--folds", "3"]
    return main([*given, "--output_dir", str(folder / "out"), "--findings", "[stenosis]", "--epochs", "2", *more])


def started(folder: Path) -> list[int]:
    return sorted(int(file.name[0]) for file in (folder / "started").iterdir())


def rows(file: Path) -> list[dict[str, str]]:
    with file.open() as opened:
        return list(csv.DictReader(opened))


def test_the_command_of_a_fold_is_the_configs_own(tmp_path: Path):
    plan = Plan("configs/finetune_segmentation.yaml", "my scans", 5, tmp_path, ["--epochs", "3"])
    words = plan.command(2)
    assert words[1:5] == ["-m", "monai.bundle", "run", "training"]
    given = dict(zip(words[5::2], words[6::2]))
    assert given == {
        "--config_file": "configs/finetune_segmentation.yaml", "--dataset_dir": "my scans", "--folds": "5",
        "--fold": "2", "--resume": "True", "--output_dir": str(tmp_path / "folds/fold_2"), "--epochs": "3",
        "--bundle_root": str(ROOT),
    }  # fmt: skip
    plan.overrides = ["--bundle_root", "/elsewhere"]
    assert plan.command(2).count("--bundle_root") == 1


def test_every_scan_is_in_one_table_with_the_fold_that_did_not_see_it(trainer: Path, capsys: Any):
    assert run(trainer) == 0
    cases = rows(trainer / "out/cases.csv")
    assert sorted((case["case"], case["label"]) for case in cases) == [(f"scan {n}", str(n % 2)) for n in range(6)]
    probability = {case["case"]: float(case["probability"]) for case in cases}
    assert probability["scan 3"] == pytest.approx(0.71)
    assert [(row["case"], row["fold"]) for row in rows(trainer / "out/folds.csv")] == [
        (f"scan {n}", str(n // 2)) for n in range(6)
    ]
    area = json.loads((trainer / "out/results.json").read_text())["metrics"]["auroc"]["stenosis"]
    assert area["mean"] == 1.0 and area["n"] == 6
    text = (trainer / "out/summary.md").read_text()
    assert (
        "3 of 3 folds are done." in text and "| 1 | 4 | 2 | 2 | 0.12 |" in text and "| mean |  |  |  | 0.12 |" in text
    )
    assert "| auroc | stenosis | 1 |" in text and text in capsys.readouterr().out
    assert "All scans" in (trainer / "out/report.html").read_text()


def test_a_fold_that_fails_stops_no_other_and_the_same_command_trains_it_alone(trainer: Path, capsys: Any):
    (trainer / "break_1").touch()
    assert run(trainer) == 1
    assert started(trainer) == [0, 1, 2] and len(rows(trainer / "out/folds.csv")) == 4
    text = (trainer / "out/summary.md").read_text()
    assert "fold 1 failed: --crop_size 7 does not fit: give another one" in text and "2 of 3 folds" in text
    assert f"--output_dir {trainer / 'out'}" in text
    (trainer / "break_1").unlink()
    assert run(trainer) == 0
    assert started(trainer) == [0, 1, 1, 2] and "2 of 3 folds are done already" in capsys.readouterr().out
    assert len(rows(trainer / "out/cases.csv")) == 6


@pytest.mark.usefixtures("without_results")
def test_a_fold_whose_end_was_not_recorded_is_gone_on_with(trainer: Path):
    assert run(trainer) == 0
    (trainer / "out/logs/fold_2.done").unlink()
    assert run(trainer) == 0 and started(trainer) == [0, 1, 2, 2]


@pytest.mark.usefixtures("without_results")
def test_so_many_run_at_a_time(trainer: Path):
    (trainer / "together").touch()  # each training waits for a second one
    assert run(trainer, "--jobs", "3") == 0 and started(trainer) == [0, 1, 2]


def test_a_second_command_in_the_folder_is_refused(trainer: Path, capsys: Any):
    hold = "import sys, pathlib\nfrom bundle.runs.lock import lock_folder\nlock_folder(pathlib.Path(sys.argv[1]))\n"
    holder = subprocess.Popen(
        [sys.executable, "-c", f"{hold}print(flush=True)\nsys.stdin.read()", str(trainer / "out")],
        cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip
    assert holder.stdout is not None
    holder.stdout.readline()
    assert run(trainer) == 1 and "is being written by another process" in capsys.readouterr().err
    assert started(trainer) == []
    holder.communicate()


@pytest.mark.usefixtures("without_results")
def test_a_failure_is_told_by_its_own_words_not_those_of_an_earlier_one(trainer: Path):
    (trainer / "break_1").touch()
    assert run(trainer) == 1
    (trainer / "break_1").unlink()
    (trainer / "kill_1").touch()
    assert run(trainer) == 1
    text = (trainer / "out/summary.md").read_text()
    assert "fold 1 failed: was killed by SIGKILL" in text and "crop_size" not in text


def test_a_scan_in_two_folds_is_noticed(trainer: Path):
    plan = Plan(CLASSIFICATION, "scans", 3, trainer / "out")
    (note,) = _note_folds(plan, [("a", 0), ("b", 0), ("c", 1), ("b", 1)])
    assert note.startswith("1 scans were validated in several folds") and note.endswith(": b")


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--fold", "1"], "--fold is set by this command"),
        (["--folds", "1"], "--folds 1 --jobs 1 cannot work"),
        (["--config_file", str(ROOT / "configs/train.yaml")], "has no folds: give a config of fine-tuning"),
        (["--config_file", "nowhere.yaml"], "nowhere.yaml cannot be read"),
    ],
)
def test_what_cannot_be_run_is_one_line(trainer: Path, capsys: Any, more: list[str], message: str):
    assert run(trainer, *more) == 1
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1 and started(trainer) == []


@pytest.mark.usefixtures("without_results")
def test_a_folder_that_was_begun_with_something_else_is_refused(trainer: Path, capsys: Any):
    assert run(trainer) == 0
    assert run(trainer, "--lr", "0.1") == 1
    assert "was begun with options" in capsys.readouterr().err
    (trainer / "other").mkdir()
    (trainer / "other/file").touch()
    assert run(trainer, "--output_dir", str(trainer / "other")) == 1
    assert "holds something else: give a new folder" in capsys.readouterr().err


@pytest.fixture
def blocks(tmp_path: Path) -> Path:
    """Four people in folders of their own, whose scans have one name: two bright blocks in noise, on tilted grids."""
    label = np.zeros((30, 28, 26), dtype=np.uint8)
    label[6:14, 8:22, 6:20], label[14:22, 8:22, 6:20] = 3, 7
    affine = np.diag([-1.0, 1.2, 1.1, 1.0]) @ nibabel.affines.from_matvec(nibabel.eulerangles.euler2mat(z=0.2))
    for number in range(4):
        noise = np.random.default_rng(number).normal(0, 5, label.shape)
        image = (100 + 60 * (label == 3) + 120 * (label == 7) + noise).astype(np.float32)
        for part, voxels in (("images", image), ("labels", label)):
            path = tmp_path / f"all people/{part}Tr/p {number}/scan.nii.gz"
            path.parent.mkdir(parents=True)
            nibabel.save(nibabel.Nifti1Image(voxels, affine), path)
    return tmp_path / "all people"


def test_segmentations_of_unseen_scans_are_evaluated_on_their_own_grids_and_the_folds_predict_together(
    blocks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def train(trainings: Trainings) -> dict[int, str]:
        for fold in range(2):  # as the command of a fold does, without a process of its own
            words = trainings.plan.command(fold)[5:]
            given = {name[2:]: yaml.safe_load(value) for name, value in zip(words[::2], words[1::2])}
            flow = ConfigWorkflow(given.pop("config_file"), workflow_type="train", run_id="training", **given)
            flow.initialize()
            flow.run()
            flow.finalize()
            trainings.plan.mark(fold).parent.mkdir(exist_ok=True)
            trainings.plan.mark(fold).touch()
        return {}

    monkeypatch.setattr(Trainings, "run", train)
    encoder = {"init_filters": "4", "blocks_down": "[1, 1, 1]", "norm": "[instance, {affine: true}]"}
    options = {
        "classes": "{left: 3, right: 7}", "pretrained": "null", "crop_size": "[32, 32, 32]", "spacing": "own",
        "epochs": "1", "steps_per_epoch": "1", "batch_size": "1", "val_interval": "1", "num_workers": "0",
        "device": "cpu", "fit_heads": "1", "bundle_root": str(tmp_path), "mirror_axes": "[]",
        **{f"encoder#{name}": value for name, value in encoder.items()},
    }  # fmt: skip
    words = [word for name, value in options.items() for word in (f"--{name}", value)]
    given = ["--config_file", str(ROOT / "configs/finetune_segmentation.yaml"), "--dataset_dir", str(blocks)]
    assert main([*given, "--folds", "2", "--output_dir", str(tmp_path / "out"), *words]) == 0
    found = {(row["case"], row["class"]): row for row in rows(tmp_path / "out/cases.csv")}
    assert found.keys() == {(f"p {number}/scan", of) for number in range(4) for of in ("left", "right")}
    for number in range(4):
        made = nibabel.load(tmp_path / f"out/label_maps/p {number}/scan.nii.gz")
        label = nibabel.load(blocks / f"labelsTr/p {number}/scan.nii.gz")
        assert np.abs(made.affine - label.affine).max() < 1e-4
        masks = [np.asarray(one.dataobj) == 3 for one in (made, label)]
        overlap = 2 * (masks[0] & masks[1]).sum() / (masks[0].sum() + masks[1].sum())
        assert float(found[f"p {number}/scan", "left"]["dice"]) == pytest.approx(overlap, abs=1e-6)
    assert sorted(row["fold"] for row in rows(tmp_path / "out/folds.csv")) == ["0", "0", "1", "1"]
    assert len(FineTuned(tmp_path / "out/folds", task="segmentation").members) == 2
    assert "| dice | left |" in (tmp_path / "out/summary.md").read_text()
