# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
from __future__ import annotations

import contextlib
import hashlib
import json
from pathlib import Path

import torch
from ignite.engine import Engine, Events

from bundle.runs import RunFolder
from bundle.tasks import ExportBest


def train(folder: Path, best: dict[int, float], epochs: int = 3, stop_after: int | None = None) -> RunFolder:
    """A run that writes a checkpoint per epoch, and a best one in the epochs of `best`."""
    run = RunFolder(folder)
    run.last_checkpoint.parent.mkdir(parents=True)
    engine = Engine(lambda *_: None)

    @engine.on(Events.EPOCH_COMPLETED)
    def checkpoint(engine: Engine) -> None:
        epoch = engine.state.epoch
        state = {"network": {"weight": torch.tensor(float(epoch))}, "epoch": epoch}
        torch.save(state, run.last_checkpoint)
        if epoch in best:
            torch.save(state, run.best_checkpoint)

    ExportBest(run_folder=run, settings={"spacing": [1, 1, 2], "where": Path("a")}).attach(engine)

    @engine.on(Events.EPOCH_COMPLETED)
    def stop(engine: Engine) -> None:
        if engine.state.epoch == stop_after:
            raise KeyboardInterrupt

    with contextlib.suppress(KeyboardInterrupt):
        engine.run([0], max_epochs=epochs)
    return run


def product(run: RunFolder) -> tuple[float, dict]:
    weights = torch.load(run.model, weights_only=True)
    return float(weights["weight"]), json.loads(run.model.with_suffix(".json").read_text())


def test_the_product_is_that_of_the_best_epoch_with_its_settings(tmp_path: Path):
    run = train(tmp_path, {1: 0.1, 2: 0.2})
    weight, about = product(run)
    assert weight == 2.0 and about["epoch"] == 2 and about["spacing"] == [1, 1, 2] and about["where"] == "a"
    assert about["sha256"] == hashlib.sha256(run.model.read_bytes()).hexdigest()


def test_a_run_that_is_stopped_has_a_product(tmp_path: Path):
    assert product(train(tmp_path, {1: 0.1, 3: 0.2}, stop_after=2))[0] == 1.0


def test_without_a_best_epoch_the_last_is_taken_and_said(tmp_path: Path, caplog):
    assert product(train(tmp_path, {}))[0] == 3.0
    assert "no epoch was validated" in caplog.text
