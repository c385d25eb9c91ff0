# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
from __future__ import annotations

import csv
import logging

import matplotlib.image
import pytest
from ignite.engine import Events
from monai.handlers import ValidationHandler
from torch.optim import SGD

from bundle.figures.curves import draw_curves
from bundle.runs.folder import RunFolder
from bundle.training.history import History, clock
from bundle.training.scalars import Scalars
from bundle.training.validation import ValidateLastEpoch

from .toy import ToyNetwork, toy_evaluator, toy_loader, toy_trainer


def train(folder, epochs, finished=0):
    network = ToyNetwork()
    optimizer = SGD(network.parameters(), lr=0.1)
    evaluator = toy_evaluator(network, [Scalars(name="validation")])
    history = History(run_folder=folder, validator=evaluator, shown=["train/loss", "validation/reconstruction"])
    handlers = [Scalars(name="train", optimizer=optimizer), ValidationHandler(2, evaluator), history]
    trainer = toy_trainer(network, optimizer, toy_loader(), epochs, handlers)

    @trainer.on(Events.STARTED)
    def resume(engine):
        engine.state.epoch, engine.state.iteration = finished, finished * 4

    trainer.run()
    return history


def test_each_epoch_is_a_row_and_a_log_line(tmp_path, caplog):
    caplog.set_level(logging.INFO, logger="bundle")
    history = train(RunFolder(tmp_path), 2)
    with (tmp_path / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["epoch"] for row in rows] == ["1", "2"]
    assert float(rows[1]["train/loss"]) == history.rows[1]["train/loss"]
    assert rows[0]["validation/reconstruction"] == "", "validation runs every second epoch"
    assert float(rows[1]["validation/reconstruction"]) > 0
    lines = [record.getMessage() for record in caplog.records if record.name == "bundle.training.history"]
    assert lines[0].startswith("epoch 1/2: train/loss ")
    assert "validation/reconstruction" in lines[1]
    assert lines[1].endswith("0:00:00 to go")


@pytest.mark.parametrize(("classes", "drawn"), [("a", "a"), ("ab", "ab"), ("abcdefghij", "abcdefgh")])
def test_each_class_has_a_curve_and_of_many_the_lowest(tmp_path, monkeypatch, classes, drawn):
    seen = []
    monkeypatch.setattr(
        "bundle.training.history.draw_curves", lambda rows, curves: seen.append(curves) or draw_curves(rows, curves)
    )
    network = ToyNetwork()
    history = History(run_folder=RunFolder(tmp_path), curves={"Dice": {"dice": "mean of the classes"}})
    trainer = toy_trainer(network, SGD(network.parameters(), lr=0.1), toy_loader(), 1, [history])
    values = {"dice": 0.5, **{f"dice/{name}": n / 10 for n, name in enumerate(classes)}}
    trainer.add_event_handler(Events.ITERATION_COMPLETED, lambda engine: engine.state.metrics.update(values))
    trainer.run()
    mean = {"dice": "mean of the classes"} if len(classes) > 1 else {}
    assert seen == [{"Dice": {**mean, **{f"dice/{name}": name for name in drawn}}}]


@pytest.mark.parametrize(("epochs", "validated"), [(1, [1]), (2, [2]), (5, [2, 4, 5])])
def test_the_last_epoch_is_validated_whatever_the_interval(epochs, validated):
    network = ToyNetwork()
    optimizer = SGD(network.parameters(), lr=0.1)
    evaluator = toy_evaluator(network, [])
    seen = []
    evaluator.add_event_handler(Events.STARTED, lambda engine: seen.append(engine.state.max_epochs))
    handlers = [ValidationHandler(2, evaluator), ValidateLastEpoch(validator=evaluator, interval=2)]
    toy_trainer(network, optimizer, toy_loader(), epochs, handlers).run()
    assert seen == validated  # MONAI's evaluators take the trainer's epoch as their last


def test_a_resume_keeps_the_rows_of_finished_epochs_only(tmp_path):
    train(RunFolder(tmp_path), 3)
    history = train(RunFolder(tmp_path, resumed=True), 4, finished=2)
    assert [row["epoch"] for row in history.rows] == [1, 2, 3, 4]
    assert train(RunFolder(tmp_path), 1).rows[0]["epoch"] == 1


def test_the_curves_are_drawn(tmp_path):
    train(RunFolder(tmp_path), 2)
    picture = matplotlib.image.imread(tmp_path / "curves.png")
    colours = {tuple((255 * pixel[:3]).round().astype(int)) for pixel in picture.reshape(-1, picture.shape[-1])}
    assert (31, 119, 180) in colours, "the training curve's blue"
    assert (255, 127, 14) in colours, "the validation curve's orange"


def test_a_picture_without_any_metric_is_left_out(tmp_path):
    curves = {"loss": {"train/loss": "training"}, "classes": {"train/pretext_accuracy_hidden": "training"}}
    sizes = []
    for number, shown in enumerate((curves, {"loss": curves["loss"]})):
        folder = RunFolder(tmp_path / str(number))
        folder.path.mkdir()
        network = ToyNetwork()
        optimizer = SGD(network.parameters(), lr=0.1)
        handlers = [Scalars(name="train", optimizer=optimizer), History(run_folder=folder, curves=shown)]
        toy_trainer(network, optimizer, toy_loader(), 1, handlers).run()
        sizes.append(matplotlib.image.imread(folder.curves).shape)
    assert sizes[0] == sizes[1]


def test_times_read_as_hours_minutes_seconds():
    assert clock(3723.4) == "1:02:03"
