# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""Checkpoints within an epoch, by time and on a scheduler's signal: a resume goes on in the next step, bit for bit."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from ignite.engine import Events
from monai.handlers import LrScheduleHandler, ValidationHandler
from monai.optimizers import WarmupCosineSchedule
from monai.utils import set_determinism
from torch.optim import AdamW
from torch.utils.data import DataLoader

from bundle.data import DrawSampler
from bundle.errors import Preempted, Terminated, UserError
from bundle.runs.folder import RunFolder
from bundle.runs.watch import told_to_end
from bundle.training import ExportEncoder, History, RunCheckpoint, Scalars, SetSamplerEpoch
from bundle.training.history import read_history

from .toy import ToyCrops, ToyNetwork, toy_evaluator, toy_trainer


class Killed(BaseException):
    """Stops everything at once, as a kill does."""


@pytest.fixture(autouse=True)
def _signals_as_before() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def train(
    path: Path, *, resume: bool = False, at: dict[int, Any] | None = None, batch_size: int = 2, workers: int = 0,
    **options: Any,
) -> tuple[dict[int, float], Any]:  # fmt: skip
    """Three epochs of four steps; `at` calls a function after a step. Gives the loss by step, and the trainer."""
    set_determinism(1)
    torch.set_num_threads(1)
    network = ToyNetwork()
    sampler = DrawSampler(4 * batch_size, rank=0, world=1)
    loader: Any = DataLoader(ToyCrops(), batch_size=batch_size, sampler=sampler, num_workers=workers)
    optimizer = AdamW(network.parameters(), lr=0.01)
    schedule = WarmupCosineSchedule(optimizer, 2, 12, warmup_multiplier=0.1)
    evaluator = toy_evaluator(network, [Scalars(name="validation")])
    folder = RunFolder(path, resumed=resume)
    checkpoint = RunCheckpoint(
        run_folder=folder, network=network, optimizer=optimizer, lr_scheduler=schedule, validator=evaluator, **options
    )
    handlers = [
        SetSamplerEpoch(loader), Scalars(name="train", optimizer=optimizer),
        LrScheduleHandler(schedule, print_lr=False, epoch_level=False), ValidationHandler(1, evaluator),
        History(run_folder=folder, validator=evaluator), checkpoint,
        ExportEncoder(run_folder=folder, network=network, models_dir=path / "models", settings={}),
    ]  # fmt: skip
    trainer = toy_trainer(network, optimizer, loader, 3, handlers)
    losses = {}

    @trainer.on(Events.ITERATION_STARTED)
    def interfere(engine: Any) -> None:
        (at or {}).get(engine.state.iteration, lambda: None)()

    @trainer.on(Events.ITERATION_COMPLETED)
    def collect(engine: Any) -> None:
        losses[engine.state.iteration] = engine.state.output["loss"].item()

    trainer.run()
    return losses, trainer


def send(number: signal.Signals) -> Any:
    return lambda: os.kill(os.getpid(), number)


def kill() -> None:
    raise Killed


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[int, float], Any, list[dict[str, float]]]:
    path = tmp_path_factory.mktemp("whole")
    return *train(path), read_history(path / "metrics.csv")


def assert_goes_on_as_if_never_stopped(path: Path, whole: Any, first: int, **options: Any) -> None:
    losses, trainer = train(path, resume=True, **options)
    all_losses, all_trainer, rows = whole
    assert losses == {step: loss for step, loss in all_losses.items() if step >= first}
    for name, tensor in trainer.network.state_dict().items():
        assert torch.equal(tensor, all_trainer.network.state_dict()[name]), name
    timed = ("seconds", "per_second", "memory")
    for row, other in zip(read_history(path / "metrics.csv"), rows, strict=True):
        assert row.keys() == other.keys()
        for name, value in row.items():
            if not any(word in name for word in timed):
                assert value == pytest.approx(other[name], rel=1e-12), name


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1], ids=lambda number: number.name)
@pytest.mark.parametrize("step", [1, 6])
def test_a_signal_lets_the_step_end_and_writes_a_checkpoint(tmp_path: Path, whole: Any, number: Any, step: int) -> None:
    with pytest.raises(Preempted) as caught:
        train(tmp_path, at={step: send(number)})
    assert told_to_end.is_set(), "so that the process waits for no name when its connections break"
    file = tmp_path / "checkpoints/last.pt"
    epoch = 1 + step // 4
    assert str(caught.value) == (
        f"stopped by {number.name} in epoch {epoch}, iteration {step}: {file} is written, go on with --resume"
    )
    saved = torch.load(file, weights_only=True)
    assert (saved["epoch"], saved["iteration"], saved["crops_per_step"]) == (epoch - 1, step, 2)
    assert_goes_on_as_if_never_stopped(tmp_path, whole, step + 1)
    assert not told_to_end.is_set()


def test_in_the_last_step_of_an_epoch_it_is_validated_first(tmp_path: Path, whole: Any) -> None:
    with pytest.raises(Preempted, match=r"in epoch 2, iteration 8: "):
        train(tmp_path, at={8: send(signal.SIGTERM)})
    saved = torch.load(tmp_path / "checkpoints/last.pt", weights_only=True)
    assert (saved["epoch"], saved["iteration"], saved["gathered"]) == (2, 8, [])
    assert json.loads((tmp_path / "model.json").read_text())["iterations"] == 8, "the product is of that epoch"
    assert len(read_history(tmp_path / "metrics.csv")) == 2
    assert_goes_on_as_if_never_stopped(tmp_path, whole, 9)


def test_loading_processes_that_get_the_signal_too_still_load_the_step(tmp_path: Path, whole: Any) -> None:
    def to_all() -> None:
        for child in torch.multiprocessing.active_children():
            os.kill(child.pid, signal.SIGUSR1)
        os.kill(os.getpid(), signal.SIGUSR1)

    with pytest.raises(Preempted):
        train(tmp_path, at={6: to_all}, workers=1)
    assert_goes_on_as_if_never_stopped(tmp_path, whole, 7, workers=1)


def test_the_schedulers_signal_and_torchruns_are_one(tmp_path: Path, whole: Any) -> None:
    def twice() -> None:
        os.kill(os.getpid(), signal.SIGUSR1)
        os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Preempted, match="stopped by SIGUSR1 in"):
        train(tmp_path, at={6: twice})
    assert_goes_on_as_if_never_stopped(tmp_path, whole, 7)


def test_a_later_signal_ends_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bundle.training.stop_request._ECHO", 0.0)

    def twice() -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Terminated) as caught:
        train(tmp_path, at={2: twice})
    assert not isinstance(caught.value, Preempted) and not (tmp_path / "checkpoints/last.pt").exists()


def test_a_signal_in_the_last_epochs_last_step_lets_the_run_complete(tmp_path: Path, whole: Any) -> None:
    losses, _ = train(tmp_path, at={12: send(signal.SIGUSR1)})
    assert losses == whole[0]


def test_the_signals_are_given_back_when_the_run_completes(tmp_path: Path) -> None:
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1)]
    train(tmp_path)
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1)] == before


def test_checkpoints_by_time_lose_one_step_at_most(tmp_path: Path, whole: Any) -> None:
    with pytest.raises(Killed):
        train(tmp_path, at={7: kill}, save_minutes=1e-9)
    assert torch.load(tmp_path / "checkpoints/last.pt", weights_only=True)["iteration"] == 6
    assert_goes_on_as_if_never_stopped(tmp_path, whole, 7)


def test_without_or_before_the_time_the_epochs_are_kept_only(tmp_path: Path) -> None:
    for minutes in (None, 1000.0):
        with pytest.raises(Killed):
            train(tmp_path / str(minutes), at={7: kill}, save_minutes=minutes)
        assert torch.load(tmp_path / str(minutes) / "checkpoints/last.pt", weights_only=True)["iteration"] == 4


def test_another_number_of_crops_per_step_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Killed):
        train(tmp_path, at={5: kill})
    with pytest.raises(UserError, match="was trained on 2 crops per step, and this command has 3: resume it with as"):
        train(tmp_path, resume=True, batch_size=3)
