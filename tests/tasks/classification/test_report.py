# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""bundle/tasks/classification/report.py: the table of the best epoch is made good after a kill."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from ignite.engine import Engine, Events

from bundle.runs.folder import RunFolder
from bundle.tasks.classification import FindingsReport


def resume(path: Path, *, finished: bool) -> None:
    """A resumed run, whose checkpoint tells whether anything is left to train."""
    trainer, validator = Engine(lambda *_: None), Engine(lambda *_: None)
    if finished:
        trainer.add_event_handler(Events.STARTED, lambda engine: engine.terminate(skip_completed=True))
    folder = RunFolder(path, resumed=True)
    FindingsReport(run_folder=folder, validator=validator, findings=["x"], volumes=[]).attach(trainer)
    if not finished:
        trainer.add_event_handler(Events.EPOCH_STARTED, lambda _: pytest.fail("it trains", pytrace=False))
    trainer.run([0], max_epochs=1)


@pytest.fixture
def killed(tmp_path: Path) -> Path:
    """A run folder as a kill after the last checkpoint leaves it."""
    for epoch in (1, 2):
        table = tmp_path / f"predictions/epoch_{epoch:04d}.csv"
        table.parent.mkdir(exist_ok=True)
        table.write_text(f"volume,x\na,0.{epoch}\n")
    (tmp_path / "checkpoints").mkdir()
    torch.save({"epoch": 1}, tmp_path / "checkpoints/best.pt")
    return tmp_path


@pytest.mark.parametrize("before", [None, "volume,x\nstale,0.9\n"])
def test_a_resume_of_a_finished_run_writes_the_table_of_its_best_epoch(killed: Path, before: str | None) -> None:
    if before is not None:
        (killed / "predictions.csv").write_text(before)
    resume(killed, finished=True)
    assert (killed / "predictions.csv").read_text() == "volume,x\na,0.1\n"


def test_a_run_that_goes_on_writes_its_table_when_it_ends(killed: Path) -> None:
    with pytest.raises(pytest.fail.Exception):
        resume(killed, finished=False)
    assert not (killed / "predictions.csv").exists()
