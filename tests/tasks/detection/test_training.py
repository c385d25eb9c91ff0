# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""What surrounds a detector in training: batches, average precision, pictures, and the table of boxes."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from ignite.engine import Engine

from bundle.data import PlainStore, PreparedVolume
from bundle.runs import RunFolder
from bundle.tasks.detection import AveragePrecision, BoxBatch, PredictedBoxes, boxes_in_voxels

BOXES = torch.tensor([[2.0, 2, 2, 10, 10, 10], [20, 20, 4, 30, 28, 12], [4, 24, 16, 9, 30, 20]])
NONE = torch.zeros(0, 6)


def prediction(boxes: torch.Tensor, scores: list[float], label: int = 0) -> dict[str, torch.Tensor]:
    labels = torch.full((len(boxes),), label)
    return {"box": boxes, "label": labels, "label_scores": torch.tensor(scores)}


def target(boxes: torch.Tensor, label: int = 0) -> dict[str, torch.Tensor]:
    return {"box": boxes, "label": torch.full((len(boxes),), label)}


def evaluate(volumes: list[tuple[dict, dict]], classes: tuple[str, ...] = ("lesion",), *more, **batch) -> Engine:
    """An evaluator that gives these predictions and targets, one volume per batch."""

    def step(engine: Engine, number: int) -> dict:
        pred, label = volumes[number]
        engine.state.batch = {name: value[number : number + 1] for name, value in batch.items()}
        return {"image": torch.zeros(1, 1, 32, 32, 32), "pred": [pred], "label": [label]}

    engine = Engine(step)
    AveragePrecision(classes=classes).attach(engine, "validation/map")
    for handler in more:
        handler.attach(engine)
    engine.run(list(range(len(volumes))))
    return engine


def test_perfect_boxes_have_an_average_precision_of_one():
    perfect = [(prediction(BOXES, [0.9, 0.5, 0.7]), target(BOXES)), (prediction(NONE, []), target(NONE))]
    metrics = evaluate(perfect).state.metrics
    assert metrics == {"validation/map": 1, "validation/recall": 1, "validation/precision_iou_0.10": 1}


def test_no_boxes_and_boxes_elsewhere_have_none():
    for pred in (prediction(NONE, []), prediction(BOXES + 40, [0.9, 0.5, 0.7])):
        metrics = evaluate([(pred, target(BOXES))]).state.metrics
        assert metrics["validation/map"] == metrics["validation/recall"] == 0


def test_a_false_box_above_a_true_one_halves_the_precision():
    boxes = torch.cat([BOXES[:1] + 40, BOXES[:1]])
    lower = evaluate([(prediction(boxes, [0.4, 0.9]), target(BOXES[:1]))]).state.metrics
    higher = evaluate([(prediction(boxes, [0.9, 0.4]), target(BOXES[:1]))]).state.metrics
    assert lower["validation/map"] == pytest.approx(1) and higher["validation/map"] == pytest.approx(0.5)


def test_a_box_counts_at_the_thresholds_below_its_overlap():
    moved = BOXES[:1] + torch.tensor([4.0, 0, 0, 4, 0, 0])  # IoU 4 / 12: 5 of the 9 thresholds from 0.1 to 0.5
    metrics = evaluate([(prediction(moved, [0.9]), target(BOXES[:1]))]).state.metrics
    assert metrics["validation/map"] == pytest.approx(5 / 9)
    assert metrics["validation/precision_iou_0.10"] == pytest.approx(1)


def test_classes_without_boxes_do_not_count():
    volumes = [(prediction(BOXES, [0.9, 0.5, 0.7]), target(BOXES)), (prediction(NONE, []), target(BOXES, label=1))]
    metrics = evaluate(volumes, ("a", "b", "absent")).state.metrics
    assert metrics["validation/a"] == 1 and metrics["validation/b"] == 0 and "validation/absent" not in metrics
    assert metrics["validation/map"] == pytest.approx(0.5)


def test_each_run_of_the_evaluator_starts_anew():
    engine = evaluate([(prediction(BOXES, [0.9, 0.5, 0.7]), target(BOXES))])
    engine.run([0])
    assert engine.state.metrics["validation/map"] == 1


def run_folder(path: Path, *, resumed: bool = False) -> RunFolder:
    path.mkdir(exist_ok=True)
    return RunFolder(path, resumed=resumed)


def test_boxes_are_listed_in_the_mm_of_the_original_file(tmp_path: Path):
    affine = torch.tensor([[0.5, 0, 0, -30], [0, 0.5, 0, 12], [0, 0, 2, 100], [0, 0, 0, 1]])
    world = np.array([[-20.0, 20, 120, 4, 5, 6], [-22, 19, 118, 3, 3, 8]])
    voxels = torch.from_numpy(boxes_in_voxels(world, affine)).float()
    volumes = [
        PreparedVolume(name=name, store=PlainStore(Path()), key="", modality="CT", size=(9, 9, 9))
        for name in ("b.nii", "a.nii")
    ]
    folder = run_folder(tmp_path)
    table = PredictedBoxes(run_folder=folder, volumes=volumes, classes=["x", "y"], key_metric="validation/map")
    perfect = [(prediction(voxels, [0.3, 0.8], label=1), target(voxels, 1)), (prediction(NONE, []), target(NONE))]
    given = {"volume": torch.tensor([0, 1]), "affine": torch.stack([affine, affine])}
    evaluate(perfect, ("x", "y"), table, **given)
    content = json.loads((tmp_path / "boxes.json").read_text())
    empty, one = content["validation"]
    assert content["epoch"] == 1 and content["validation/map"] == 1 and content["classes"] == ["x", "y"]
    assert empty == {"image": "a.nii", "box": [], "label": [], "score": []}
    assert one["image"] == "b.nii" and one["score"] == [0.8, 0.3] and one["label"] == [1, 1]
    np.testing.assert_allclose(one["box"], world[::-1], atol=1e-3)
    with (tmp_path / "boxes.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["class"] for row in rows] == ["y", "y"] and float(rows[0]["depth"]) == 8


def test_the_list_has_the_labels_of_the_data_list(tmp_path: Path):
    folder = run_folder(tmp_path)
    volumes = [PreparedVolume(name="a.nii", store=PlainStore(Path()), key="", modality="CT", size=(9, 9, 9))]
    classes = {"x": 7, "y": 2}
    table = PredictedBoxes(run_folder=folder, volumes=volumes, classes=classes, key_metric="validation/map")
    given = {"volume": torch.tensor([0]), "affine": torch.eye(4)[None]}
    evaluate([(prediction(BOXES[:1], [0.9], label=1), target(BOXES[:1], 1))], ("x", "y"), table, **given)
    content = json.loads((tmp_path / "boxes.json").read_text())
    assert content["classes"] == classes and content["validation"][0]["label"] == [2]
    with (tmp_path / "boxes.csv").open() as file:
        assert [row["class"] for row in csv.DictReader(file)] == ["y"]


def test_the_list_of_a_better_epoch_is_kept_also_after_a_resume(tmp_path: Path):
    volumes = [PreparedVolume(name="a.nii", store=PlainStore(Path()), key="", modality="CT", size=(9, 9, 9))]
    given = {"volume": torch.tensor([0]), "affine": torch.eye(4)[None]}
    good, bad = prediction(BOXES, [0.9, 0.5, 0.7]), prediction(BOXES[:1], [0.9])
    for resumed, pred, listed in ((False, good, 3), (True, bad, 3), (False, bad, 1)):
        folder = run_folder(tmp_path, resumed=resumed)
        table = PredictedBoxes(run_folder=folder, volumes=volumes, classes=["x"], key_metric="validation/map")
        evaluate([(pred, target(BOXES))], ("x",), table, **given)
        (one,) = json.loads((tmp_path / "boxes.json").read_text())["validation"]
        assert len(one["box"]) == listed


@pytest.mark.parametrize("training", [True, False])
def test_a_batch_becomes_images_and_targets(training: bool):
    batch = {"image": torch.zeros(2, 1, 4, 4, 4), "box": [BOXES, NONE], "label": [torch.zeros(3).byte(), NONE[:, 0]]}
    image, targets, positional, named = BoxBatch(training=training)(batch, "cpu")
    assert image is batch["image"] and positional == ()
    assert [len(one["box"]) for one in targets] == [3, 0] and targets[0]["label"].dtype == torch.int64
    assert named == ({"targets": targets} if training else {"use_inferer": True})
