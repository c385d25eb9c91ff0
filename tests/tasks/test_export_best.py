# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
from __future__ import annotations

import contextlib
import hashlib
import json
from pathlib import Path

import pytest
import torch
from ignite.engine import Engine, Events

from bundle.errors import UserError
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


@pytest.mark.parametrize(
    ("name", "before", "now"),
    [("classes", {"a": 1, "b": 2}, {"b": 2, "a": 1}), ("classes", ["a", "b"], ["b", "a"]), ("findings", ["x"], ["y"])],
)
def test_a_resume_with_other_outputs_is_refused_and_the_product_stays(tmp_path: Path, name: str, before, now):
    run = train(tmp_path, {1: 0.1})
    settings = json.loads(run.model.with_suffix(".json").read_text())
    run.model_files.write({"weight": torch.tensor(1.0)}, {**settings, name: before})
    kept = run.model.with_suffix(".json").read_bytes()
    engine = Engine(lambda *_: None)
    resumed = RunFolder(tmp_path, resumed=True)
    ExportBest(run_folder=resumed, settings={name: now}).attach(engine)
    with pytest.raises(UserError, match=f"was trained with the {name} .* and this command has"):
        engine.run([0], max_epochs=4)
    assert run.model.with_suffix(".json").read_bytes() == kept
    engine = Engine(lambda *_: None)
    ExportBest(run_folder=resumed, settings={name: before}).attach(engine)
    engine.run([0], max_epochs=4)


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
