# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from bundle.errors import UserError
from bundle.prediction import FineTuned, seen_in_training
from bundle.runs import RunFolder
from bundle.weights import ModelFiles, checksum
from tests.prediction.models import write_fine_tuned

ABOUT: dict[str, Any] = {
    "task": "segmentation",
    "network": {"name": "SegResNetDS", "in_channels": 2},
    "outputs": "channel 0 is the background",
    "classes": {"liver": 6, "spleen": 1},
    "in_channels": 2,
    "crop_size": [32, 32, 32],
    "spacing": [1.5, 1.5, None],
    "orientation": "RAS",
    "modality": "CT",
    "ct_window": [-160, 240],
    "mr_percentiles": [0.5, 99.5],
    "mr_floor": None,
    "mirror_axes": [0, 2],
}


def write(folder: Path, *, value: float = 0.0, without: tuple[str, ...] = (), **changed: Any) -> Path:
    about = {key: content for key, content in {**ABOUT, **changed}.items() if key not in without}
    ModelFiles(folder / "model.pt").write({"weight": torch.full((1, 2), float(value)), "bias": torch.zeros(1)}, about)
    return folder


def problem(model: Any, task: str = "segmentation") -> str:
    with pytest.raises(UserError) as caught:
        FineTuned(model, task=task)
    assert "\n" not in str(caught.value) and (": " in str(caught.value) or "; " in str(caught.value))
    return str(caught.value)


def linear(content: Any) -> nn.Module:
    return nn.Linear(content["in_channels"], 1)


@pytest.mark.parametrize("named", ["folder", "file", "text"])
def test_a_run_is_named_by_its_folder_or_its_weights(tmp_path: Path, named: str):
    run = write(tmp_path / "a run [1]")
    model = FineTuned({"folder": run, "file": run / "model.pt", "text": str(run)}[named], task="segmentation")
    assert [files.weights for files in model.members] == [run / "model.pt"]
    assert model.sha256 == [checksum(run / "model.pt")]
    for key, value in ABOUT.items():
        assert model.content[key] == value and getattr(model, key, value) == value
    assert model.classes == ABOUT["classes"] and model.crop_size == ABOUT["crop_size"]


def test_an_ensemble_is_a_list_or_a_folder_of_folds(tmp_path: Path):
    folds = [write(tmp_path / "folds" / f"fold_{number}", value=number) for number in (0, 1, 2, 10)]
    (tmp_path / "folds/tables").mkdir()
    whole = FineTuned(tmp_path / "folds", task="segmentation")
    assert [files.weights.parent for files in whole.members] == folds, "fold_10 after fold_2"
    networks = whole.load(linear)
    assert [network.weight[0, 0].item() for network in networks] == [0, 1, 2, 10]
    assert not any(network.training for network in networks) and len(set(whole.sha256)) == 4
    for listed in (folds[:2], f"[{folds[0]}, '{folds[1]}/model.pt']"):
        assert [files.weights.parent for files in FineTuned(listed, task="segmentation").members] == folds[:2]
    (folds[1] / "model.pt").unlink()
    assert "has the fold fold_1 without a model.pt" in problem(tmp_path / "folds")


def test_beside_folds_other_runs_are_left_out_and_the_log_tells_the_members(tmp_path: Path, caplog):
    folds = [write(tmp_path / f"fold_{number}", value=number) for number in (0, 1)]
    write(tmp_path / "2026-01-01_other_experiment", value=7)
    model = FineTuned(tmp_path, task="segmentation")
    assert [files.weights.parent for files in model.members] == folds
    with caplog.at_level(logging.INFO):
        model.load(linear)
    listed = ", ".join(str(fold / "model.pt") for fold in folds)
    assert f"2 models predict together: {listed}" in caplog.text
    assert "its other folders are left out: 2026-01-01_other_experiment" in caplog.text


def test_of_a_folder_without_folds_all_models_are_taken_with_a_warning(tmp_path: Path, caplog):
    for name in ("seed_1", "seed_2"):
        write(tmp_path / name)
    FineTuned(tmp_path, task="segmentation").load(linear)
    assert "has no folds, so all of its models predict together" in caplog.text
    caplog.clear()
    FineTuned(tmp_path / "seed_1", task="segmentation").load(linear)
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


@pytest.mark.parametrize("name", ["fold_1", "seed_1"])
@pytest.mark.parametrize("left", ["config", "checkpoint", "interrupted"])
def test_a_training_that_has_not_ended_is_taken_only_by_name(tmp_path: Path, name: str, left: str, caplog):
    runs = [write(tmp_path / "folds" / one) for one in ("fold_0" if name == "fold_1" else "seed_0", name)]
    unfinished = RunFolder(runs[1])
    unfinished.last_checkpoint.parent.mkdir()
    (unfinished.last_checkpoint if left == "checkpoint" else unfinished.config).touch()
    if left == "interrupted":
        unfinished.summary.write_text("# Fine-tuning summary\n\nTraining interrupted in epoch 2 of 9.\n")
    text = problem(tmp_path / "folds")
    assert f"holds {name}, whose training has not come to its end: train it to the end, or list" in text
    FineTuned(runs, task="segmentation").load(linear)
    assert f"{runs[1] / 'model.pt'}: its training has not come to its end" in caplog.text
    assert f"{runs[0] / 'model.pt'}: its training" not in caplog.text
    caplog.clear()
    unfinished.summary.write_text("# Fine-tuning summary\n\nTraining completed 9 of 9 epochs.\n")
    model = FineTuned(tmp_path / "folds", task="segmentation")
    model.load(linear)
    assert [files.weights.parent for files in model.members] == runs and "come to its end" not in caplog.text


def test_mirrors_of_an_ensemble_are_those_that_every_member_has_seen(tmp_path: Path):
    folders = [write(tmp_path / "a"), write(tmp_path / "b", mirror_axes=[0, 1])]
    assert FineTuned(folders, task="segmentation").mirror_axes == [0]


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("classes", {"spleen": 1, "liver": 6}),  # the order is that of the outputs
        ("spacing", [1, 1, 1]),
        ("orientation", "LPS"),
        ("modality", "auto"),
        ("ct_window", [-100, 200]),
        ("mr_percentiles", [0, 100]),
        ("mr_floor", 3.0),
        ("in_channels", 1),
        ("crop_size", [64, 64, 64]),
    ],
)
def test_members_that_differ_are_refused_by_name(tmp_path: Path, key: str, value: Any):
    folders = [write(tmp_path / "a"), write(tmp_path / "b"), write(tmp_path / "c", **{key: value})]
    text = problem(folders)
    assert f"differ in {key}" in text and str(folders[1]) in text and str(folders[2]) in text


@pytest.mark.parametrize(
    ("told_by", "task"),
    [
        ({"network": {"name": "SegResNetDS", "in_channels": 2}, "outputs": "channel 0"}, "segmentation"),
        ({"network": "EncoderClassifier", "findings": ["stenosis"]}, "classification"),
        ({"network": "RetinaNet", "anchor_shapes": [[4, 4, 4]]}, "detection"),
    ],
)
def test_a_json_of_version_0_1_0_tells_its_task_by_what_it_holds(tmp_path: Path, told_by: dict[str, Any], task: str):
    new = ("task", "in_channels", "modality", "mirror_axes", "mr_floor", "network", "outputs")
    run = write(tmp_path / "run", without=new)
    about = json.loads((run / "model.json").read_text()) | told_by
    (run / "model.json").write_text(json.dumps(about))
    model = FineTuned(run, task=task)
    assert model.task == task and model.in_channels == (2 if task == "segmentation" else 1)
    assert model.modality == "auto" and model.mirror_axes == [] and model.mr_floor == 3.0


def test_classes_that_are_names_alone_have_the_numbers_of_their_order(tmp_path: Path):
    run = write(tmp_path / "run", task="detection", classes=["nodule", "cyst"])
    assert FineTuned(run, task="detection").classes == {"nodule": 0, "cyst": 1}


def test_a_key_that_the_json_lacks_is_one_line_that_names_both(tmp_path: Path):
    model = FineTuned(write(tmp_path / "run"), task="segmentation")
    for key in ("findings", "input"):
        with pytest.raises(UserError, match=f"run/model.json has no {key}, which says how to predict: copy the"):
            getattr(model, key)


def test_what_is_no_model_for_the_task_is_refused_with_what_to_do(tmp_path: Path):
    run = write(tmp_path / "run")
    assert "is a model for segmentation, not detection: use configs/predict_segmentation.yaml" in problem(
        run, "detection"
    )
    shipped = Path(__file__).parents[2] / "models"
    if shipped.is_dir() and (shipped / "model.json").is_file():
        assert "pre-trained encoder" in problem(shipped)
    encoder = write(tmp_path / "encoder", without=("task", "outputs", "classes", "network"))
    assert "is a pre-trained encoder, which has no classes: fine-tune it with" in problem(encoder)
    assert "does not exist" in problem(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    assert "holds no model.pt" in problem(tmp_path / "empty")
    (run / "checkpoints").mkdir()
    (run / "checkpoints/best.pt").touch()
    assert f"is a checkpoint to resume from: give the run's folder, {run}" in problem(run / "checkpoints/best.pt")
    assert "more than once" in problem([run, str(run / "model.pt")])
    assert "names no fine-tuned model" in problem(None) and "names no fine-tuned model" in problem([])
    assert "lacks spacing" in problem(write(tmp_path / "bare", without=("spacing",)))
    (run / "model.json").unlink()
    assert "model.json does not exist" in problem(run)


def test_weights_that_the_json_does_not_describe_are_refused(tmp_path: Path):
    run = write(tmp_path / "run")
    model = FineTuned(run, task="segmentation")
    write(tmp_path / "other", value=1.0)
    (run / "model.pt").write_bytes((tmp_path / "other/model.pt").read_bytes())
    with pytest.raises(UserError, match="is not the file that"):
        model.load(linear)


def test_the_voxels_trained_on_are_those_of_all_members_or_not_known(tmp_path: Path):
    for number, (low, high) in enumerate([(0.5, 1.0), (0.8, 2.0)]):
        write_fine_tuned(tmp_path / f"fold_{number}", voxel_mm={"lowest": [low, 1, 1], "highest": [high, 1, 3]})
    assert FineTuned(tmp_path, task="segmentation").trained_voxel_mm == ([0.5, 1, 1], [2.0, 1, 3])
    write_fine_tuned(tmp_path / "fold_2", voxel_mm=None)
    assert FineTuned(tmp_path, task="segmentation").trained_voxel_mm is None


@pytest.mark.parametrize(
    ("volumes", "expected"),
    [
        ([{"training": {"CT": 0, "MR": 5}}], ["MR"]),
        ([{"training": {"CT": 2, "MR": 0}}, {"training": {"CT": 0, "MR": 5}}], ["CT", "MR"]),
        ([{"training": {"CT": 2, "MR": 0}}, None], []),
    ],
)
def test_the_modalities_are_those_that_a_member_was_trained_on(tmp_path: Path, volumes: list, expected: list[str]):
    for number, summary in enumerate(volumes):
        write_fine_tuned(tmp_path / f"fold_{number}", volumes=summary)
    assert FineTuned(tmp_path, task="segmentation").trained_modalities == expected


def test_an_evaluation_is_told_of_all_scans_that_a_model_and_those_it_began_with_have_seen(tmp_path: Path):
    began_with = [{"file": "pre.pt"}, {"file": "a.pt", "fingerprints": {"training": ["1"], "validation": ["2"]}}]
    own = {"training": ["3"], "validation": ["4"], "unlabelled": ["5"]}
    write_fine_tuned(tmp_path / "a", fingerprints=own, origin=began_with)
    told = seen_in_training(str(tmp_path / "a"), task="segmentation")
    assert told == {**{part: list(seen) for part, seen in own.items()}, "earlier": ["1", "2"]}
    write_fine_tuned(tmp_path / "b", origin=began_with)
    assert seen_in_training([str(tmp_path / "a"), str(tmp_path / "b")], task="segmentation") == {}
