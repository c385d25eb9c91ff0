# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""scripts/cross_validate.py: which folds are trained, what is gathered, and what a failure does."""

from __future__ import annotations

import csv
import json
import sys
import threading
import time
from pathlib import Path
from typing import Any

import cross_validate
import nibabel
import numpy as np
import pytest
import yaml
from cross_validate import main
from cross_validate_parts.gather import _rows
from cross_validate_parts.out_of_fold import find_validated
from cross_validate_parts.plan import Plan
from cross_validate_parts.same_scans import begin_scans, check_folds, check_once
from cross_validate_parts.trainings import Trainings
from monai.bundle import ConfigWorkflow

from bundle.data.fingerprints import fingerprint
from bundle.data.names import name_digest
from bundle.errors import UserError
from bundle.evaluation import match_names, write_table
from bundle.prediction import FineTuned
from tests.runs.test_lock import other_process

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
    monkeypatch.setattr(cross_validate, "gather", lambda _: None)


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


@pytest.mark.usefixtures("without_results")
def test_folds_read_the_config_one_after_another_and_what_fails_in_one_stops_no_other(
    trainer: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
):
    config, busy, met, failed = Plan.config, threading.Lock(), [], []

    def slow_config(plan: Plan) -> Any:  # MONAI's reader looks through all modules, while other threads may import
        met.append(not busy.acquire(blocking=False))
        time.sleep(0.05)
        if not met[-1]:
            busy.release()
        if threading.current_thread() is not threading.main_thread() and not failed:
            failed.append(1)
            raise RuntimeError("dictionary changed size during iteration")
        return config(plan)

    monkeypatch.setattr(Plan, "config", slow_config)
    assert run(trainer, "--jobs", "3") == 1
    assert failed and not any(met)
    assert len(started(trainer)) == 2 and "RuntimeError: dictionary changed size" in capsys.readouterr().out


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
    with other_process(trainer / "out"):
        assert run(trainer) == 1 and "is being written by another process" in capsys.readouterr().err
    assert started(trainer) == []


@pytest.mark.usefixtures("without_results")
def test_a_failure_is_told_by_its_own_words_not_those_of_an_earlier_one(trainer: Path):
    (trainer / "break_1").touch()
    assert run(trainer) == 1
    (trainer / "break_1").unlink()
    (trainer / "kill_1").touch()
    assert run(trainer) == 1
    text = (trainer / "out/summary.md").read_text()
    assert "fold 1 failed: was killed by SIGKILL" in text and "crop_size" not in text


@pytest.mark.parametrize("task", ["classification", "detection"])
def test_a_scan_that_two_folds_validated_is_refused_before_anything_is_evaluated(trainer: Path, task: str):
    plan = Plan(CLASSIFICATION, str(trainer / "my scans"), 3, trainer / "out")
    finish(plan, {0: ([], []), 1: ([], [])}, task=task)
    for fold in (0, 1):
        (plan.folder(fold).path / "predictions.csv").write_text("volume,stenosis,stenosis label\nscan 3,0.9,1\n")
        boxes = [{"image": "scan 3", "box": [], "label": [], "score": []}]
        (plan.folder(fold).path / "boxes.json").write_text(json.dumps({"validation": boxes}))
    with pytest.raises(UserError, match=r"different scans \(scan 3 was validated in folds 0 and 1\): give another"):
        cross_validate.gather(plan)
    assert {file.name for file in plan.output.iterdir()} == {"settings.json", "folds", "logs"}
    check_once(plan, [("a", 0), ("b", 0), ("c", 1)])


def test_scans_that_came_after_the_first_fold_are_refused_before_another_one_is_trained(trainer: Path, capsys: Any):
    (trainer / "break_1").touch()
    assert run(trainer) == 1
    table = trainer / "my scans/labels.csv"
    before = table.read_text()
    table.write_text(f"{before}scan 6,0,training\n")
    (trainer / "break_1").unlink()
    capsys.readouterr()
    assert run(trainer) == 1 and started(trainer) == [0, 1, 2]
    error = capsys.readouterr().err
    assert "(1 new, 0 gone, 0 changed, " in error and "; such as scan 6): " in error and error.count("\n") == 1
    table.write_text(f"{before}another,1,test\n")  # is in no fold
    assert run(trainer) == 0 and started(trainer) == [0, 1, 1, 2]


@pytest.mark.usefixtures("without_results")
def test_scans_may_be_mended_while_no_fold_has_trained(trainer: Path):
    for fold in range(3):
        (trainer / f"break_{fold}").touch()
    assert run(trainer) == 1
    with (trainer / "my scans/labels.csv").open("a") as table:
        table.write("scan 6,0,training\n")
    for fold in range(3):
        (trainer / f"break_{fold}").unlink()
    assert run(trainer) == 0 and "scan 6" in (trainer / "out/settings.json").read_text()


@pytest.mark.usefixtures("without_results")
def test_data_that_change_while_folds_are_trained_stop_the_next_fold(trainer: Path, capsys: Any):
    with (trainer / "trainer.py").open("a") as file:
        file.write("with open('labels.csv', 'a') as table:\n    table.write('scan 6,0,training\\n')\n")
    source = (trainer / "trainer.py").read_text().replace("'labels.csv'", repr(str(trainer / "my scans/labels.csv")))
    (trainer / "trainer.py").write_text(source)
    assert run(trainer) == 1 and started(trainer) == [0]
    assert "fold 1 failed: " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--fold", "1"], "--fold is set by this command"),
        (["--epoch", "5"], "unknown option --epoch: did you mean --epochs?"),
        (["--lr", "-1e-3"], "--lr -0.001 cannot work: give a number from 0"),
        (["--hash_names", "maybe"], "--hash_names 'maybe' cannot work: give True or False"),
        (["--encodr#name", "x"], "unknown option --encodr#name: did you mean --encoder#name?"),
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


def finish(plan: Plan, parts: dict[int, tuple[list[str], list[str]]], task: str = "segmentation") -> None:
    """Finished folds of an earlier version: what they trained on and validated, by fingerprints."""
    plan.settings.parent.mkdir(parents=True)
    plan.settings.write_text("{}")
    for fold, (training, validation) in parts.items():
        plan.folder(fold).path.mkdir(parents=True)
        about = {"task": task, "findings": ["stenosis"], "classes": {"nodule": 0}}
        about["fingerprints"] = {"training": training, "validation": validation}
        plan.folder(fold).model_files.settings.write_text(json.dumps(about))
        plan.folder(fold).model.touch()
        plan.mark(fold).parent.mkdir(exist_ok=True)
        plan.mark(fold).touch()


def of_people(blocks: Path, *people: int) -> list[str]:
    return [fingerprint([str(blocks / f"imagesTr/p {number}/scan.nii.gz")]) for number in people]


SEGMENTATION = str(ROOT / "configs/finetune_segmentation.yaml")


def add_person(blocks: Path, number: int) -> None:
    for part in ("imagesTr", "labelsTr"):
        voxels = np.random.default_rng(number).integers(0, 2, (30, 28, 26)).astype(np.uint8)
        path = blocks / f"{part}/p {number}/scan.nii.gz"
        path.parent.mkdir()
        nibabel.save(nibabel.Nifti1Image(voxels, np.eye(4)), path)


def test_a_fold_is_judged_on_what_it_recorded_whatever_the_data_are_now(blocks: Path, tmp_path: Path, capsys: Any):
    plan = Plan(SEGMENTATION, str(blocks), 2, tmp_path / "out")
    finish(plan, {0: (of_people(blocks, 0, 3), of_people(blocks, 1, 2)),
                  1: (of_people(blocks, 1, 2), of_people(blocks, 0, 3))})  # fmt: skip
    add_person(blocks, 4)
    names = {fold: [scan.name for scan in scans] for fold, scans in find_validated(plan, [0, 1]).items()}
    assert names == {0: ["p 1/scan", "p 2/scan"], 1: ["p 0/scan", "p 3/scan"]}
    begin_scans(plan)
    assert "no finished fold used 1 of the scans, such as p 4/scan.nii.gz" in capsys.readouterr().out
    assert "scans" not in json.loads(plan.settings.read_text()), "they may not be those of the folds"
    (blocks / "imagesTr/p 4/scan.nii.gz").unlink()
    begin_scans(plan)
    assert len(json.loads(plan.settings.read_text())["scans"]) == 4
    (blocks / "imagesTr/p 3/scan.nii.gz").unlink()
    with pytest.raises(UserError, match="0 new, 1 gone, 0 changed"):
        begin_scans(plan)
    plan.settings.write_text("{}")
    with pytest.raises(UserError, match="1 that finished folds used are gone or changed"):
        begin_scans(plan)


def test_folds_of_different_scans_are_refused_and_one_can_be_trained_again(blocks: Path, tmp_path: Path):
    plan = Plan(SEGMENTATION, str(blocks), 2, tmp_path / "out")
    finish(plan, {0: (["a", "b"], ["c"]), 1: (["a", "x"], ["b", "c"])})
    with pytest.raises(UserError, match="1 scans were used in one of folds 0 and 1 only, and 1 were validated in both"):
        begin_scans(plan)
    with pytest.raises(UserError, match=r"remove .*fold_1 and .*fold_1.done to train that fold again"):
        cross_validate.gather(plan)
    plan.mark(1).unlink()
    check_folds(plan)


def test_scans_with_one_case_name_have_a_label_map_each(blocks: Path, tmp_path: Path):
    add_person(blocks, 4)
    for part in ("imagesTr", "labelsTr"):
        (blocks / part / "p 4").rename(blocks / part / "P 0")  # beside p 0, which some file systems do not tell apart
    plan = Plan(SEGMENTATION, str(blocks), 2, tmp_path / "out")
    listed = plan.find_scans()
    finish(plan, {0: ([], [fingerprint(scan.files) for scan in listed])})
    (scans,) = find_validated(plan, [0]).values()
    names = [scan.name for scan in scans]
    assert len({name.lower() for name in names}) == len(listed) == 5
    assert match_names(listed, names) == names


def test_tables_of_folds_are_read_as_they_were_written(tmp_path: Path):
    plan = Plan(CLASSIFICATION, str(tmp_path), 2, tmp_path / "out")
    plan.folder(0).path.mkdir(parents=True)
    write_table(plan.folder(0).path / "predictions.csv", ["volume"], [{"volume": "+C case"}])
    assert _rows(plan, 0, "predictions.csv") == [{"volume": "+C case", "fold": 0}]


def test_copies_of_one_scan_are_all_the_first_folds(blocks: Path, tmp_path: Path):
    for number in range(1, 4):
        file = blocks / f"imagesTr/p {number}/scan.nii.gz"
        file.write_bytes((blocks / "imagesTr/p 0/scan.nii.gz").read_bytes())
    plan = Plan(SEGMENTATION, str(blocks), 2, tmp_path / "out")
    one = of_people(blocks, 0)
    finish(plan, {0: (one, one), 1: (one, one)})
    check_folds(plan)
    assert {fold: len(scans) for fold, scans in find_validated(plan, [0, 1]).items()} == {0: 4}


@pytest.mark.parametrize("task", ["segmentation", "classification", "detection"])
@pytest.mark.parametrize("change", ["new", "gone", "changed", "in another fold"])
def test_every_task_refuses_other_scans(blocks: Path, tmp_path: Path, task: str, change: str):
    def write(scans: list[int], finding: int = 1) -> None:
        """Lists scans, each of a person of its own; `finding` is what is labelled."""
        rows = [
            {"image": f"imagesTr/p {number}/scan.nii.gz", "group": f"g{place}"} for place, number in enumerate(scans)
        ]
        boxes = {"box": [[0, 0, 0, 5, 5, 5 + finding]], "label": [0]}
        maps = [{"label": row["image"].replace("images", "labels")} for row in rows]
        labels = maps if task == "segmentation" else [boxes] * len(rows)
        entries = [{**row, **label} for row, label in zip(rows, labels)]
        (blocks / "dataset.json").write_text(json.dumps({"training": entries}))
        lines = ["image,group,stenosis", *(f"{row['image']},{row['group']},{finding}" for row in rows)]
        (blocks / "labels.csv").write_text("\n".join(lines) + "\n")
        if not finding:
            file = blocks / "labelsTr/p 0/scan.nii.gz"
            nibabel.save(nibabel.Nifti1Image(np.ones((30, 28, 26), np.uint8), np.eye(4)), file)

    given = ["--findings", "[stenosis]"] if task == "classification" else []
    config = str(ROOT / f"configs/finetune_{task}.yaml")
    plan = Plan(config, str(blocks), 2, tmp_path / "out", [*given, "--hash_names", "True"])
    finish(plan, {0: ([], [])})
    write([0, 1, 2])
    begin_scans(plan)
    assert "scan" not in str(json.loads(plan.settings.read_text())["scans"].keys()), "names are digests"
    begin_scans(plan)
    changes = {"new": lambda: write([0, 1, 2, 3]), "gone": lambda: write([0, 1]),
               "changed": lambda: write([0, 1, 2], finding=0), "in another fold": lambda: write([1, 2, 0])}  # fmt: skip
    changes[change]()
    with pytest.raises(UserError, match=rf"[1-3] {change}.*; such as [0-9a-f]{{16}}\)"):
        begin_scans(plan)
    assert name_digest("p 0") not in plan.settings.read_text()


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
    given = ["--config_file", SEGMENTATION, "--dataset_dir", str(blocks)]
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
