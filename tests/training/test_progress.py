# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
from __future__ import annotations

import io
import logging
import sys

from ignite.engine import Engine, Events
from torch.optim import SGD

from bundle.training import progress as module
from bundle.training.progress import Progress
from bundle.training.scalars import Scalars

from .toy import ToyNetwork, toy_loader, toy_trainer


class Terminal(io.StringIO):
    def isatty(self):
        return True


def train(every_seconds):
    network = ToyNetwork()
    optimizer = SGD(network.parameters(), lr=0.1)
    progress = Progress(name="train", shown=["reconstruction"], every_seconds=every_seconds)
    toy_trainer(network, optimizer, toy_loader(), 2, [Scalars(name="train", optimizer=optimizer), progress]).run()


def test_a_terminal_shows_a_bar_with_the_terms(monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    train(every_seconds=60)
    assert "train [2/2]" in terminal.getvalue()
    assert "reconstruction=" in terminal.getvalue()


def test_none_shows_the_loss_and_each_objective(monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    network = ToyNetwork()
    optimizer = SGD(network.parameters(), lr=0.1)
    handlers = [Scalars(name="train", optimizer=optimizer), Progress(name="train", shown=None)]
    trainer = toy_trainer(network, optimizer, toy_loader(), 1, handlers)
    trainer.loss_function.objectives = {"reconstruction": None, "zero_predictor": None, "absent": None}
    trainer.run()
    shown = terminal.getvalue()
    assert all(f"{name}=" in shown for name in ("loss", "reconstruction", "zero_predictor"))
    assert "mean_predictor" not in shown and "absent" not in shown


def test_a_log_file_gets_no_bar_and_no_line_in_a_short_epoch(caplog, capsys):
    caplog.set_level(logging.INFO, logger="bundle")
    train(every_seconds=60)
    assert caplog.text == ""
    assert "%|" not in capsys.readouterr().err


def test_a_run_that_is_resumed_within_an_epoch_shows_its_place_there_and_the_time_for_the_rest(caplog, monkeypatch):
    caplog.set_level(logging.INFO, logger="bundle")
    clock = iter(range(0, 1000, 5))
    monkeypatch.setattr(module.time, "monotonic", lambda: next(clock))
    engine = Engine(lambda *_: None)

    @engine.on(Events.STARTED)
    def resume() -> None:  # as RunCheckpoint does
        engine.state.epoch, engine.state.iteration = 1, 197

    Progress(name="train", every_seconds=0).attach(engine)
    engine.run([0] * 100, max_epochs=2)
    lines = [record.getMessage() for record in caplog.records]
    assert lines == [
        f"train epoch 2, iteration {place}/100: {seconds} s to go in this epoch"
        for place, seconds in ((98, 10), (99, 5), (100, 0))
    ]


def test_a_log_file_gets_a_line_now_and_then_in_a_long_epoch(caplog):
    caplog.set_level(logging.INFO, logger="bundle")
    train(every_seconds=0)
    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) == 8
    assert lines[0].startswith("train epoch 1, iteration 1/4: reconstruction ")
    assert lines[7].startswith("train epoch 2, iteration 4/4")
    assert lines[7].endswith("0 s to go in this epoch")


def test_one_pass_over_scans_has_no_epoch(caplog, monkeypatch):
    caplog.set_level(logging.INFO, logger="bundle")
    clock = iter(range(0, 1000, 5))
    monkeypatch.setattr(module.time, "monotonic", lambda: next(clock))
    engine = Engine(lambda *_: None)
    Progress(name="predict", every_seconds=0).attach(engine)
    engine.run([0] * 3, max_epochs=1)
    assert [record.getMessage() for record in caplog.records] == [
        "predict 1/3: 10 s to go", "predict 2/3: 5 s to go", "predict 3/3: 0 s to go"
    ]  # fmt: skip
