# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
from __future__ import annotations

import logging
import os
import random
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from ignite.engine import Events
from monai.handlers import LrScheduleHandler, ValidationHandler
from monai.optimizers import WarmupCosineSchedule
from monai.utils import set_determinism
from torch.optim import AdamW

from bundle.errors import UserError
from bundle.runs.folder import RunFolder
from bundle.runs.steps import training_steps
from bundle.training.checkpoint import RunCheckpoint, _load_schedule
from bundle.training.sampling import SetSamplerEpoch
from bundle.training.scalars import Scalars
from bundle.transfer import FineTuneSchedule
from tests.commands import run_python

from .toy import ToyNetwork, toy_evaluator, toy_loader, toy_trainer

ROOT = Path(__file__).parents[2]


def train(path, epochs=4, *, resume=False, kill_at=0, stop_at=0, channels=3, draws=8, lr=0.01, total=None, **more):
    """Trains the toy in a run folder and returns the loss (with a random draw of Python's and numpy's) by iteration."""
    set_determinism(1)
    torch.set_num_threads(1)
    network, loader = ToyNetwork(channels), toy_loader(draws)
    optimizer = AdamW(network.parameters(), lr=lr)
    schedule = WarmupCosineSchedule(optimizer, 2, training_steps(loader, total or epochs), warmup_multiplier=0.1)
    evaluator = toy_evaluator(network, [Scalars(name="validation")])
    checkpoint = RunCheckpoint(
        run_folder=RunFolder(Path(path), resumed=resume),
        network=network, optimizer=optimizer, lr_scheduler=schedule, validator=evaluator, **more,
    )  # fmt: skip
    handlers = [
        SetSamplerEpoch(loader),
        LrScheduleHandler(schedule, print_lr=False, epoch_level=False),
        ValidationHandler(1, evaluator),
        checkpoint,
    ]
    trainer = toy_trainer(network, optimizer, loader, epochs, handlers)
    losses = {}

    @trainer.on(Events.ITERATION_COMPLETED)
    def collect(engine):
        losses[engine.state.iteration] = (engine.state.output["loss"].item(), random.random(), np.random.rand())  # noqa: NPY002
        if engine.state.iteration == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        if engine.state.iteration == stop_at:
            raise KeyboardInterrupt

    if stop_at:
        with pytest.raises(KeyboardInterrupt):
            trainer.run()
    else:
        trainer.run()
    return losses, trainer, checkpoint


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    return train(tmp_path_factory.mktemp("whole"))


def test_a_run_killed_in_the_middle_of_an_epoch_resumes_bit_for_bit(tmp_path, uninterrupted):
    code = f"from tests.training.test_checkpoint import train; train({str(tmp_path)!r}, kill_at=10)"
    done = run_python("-c", code, cwd=ROOT)
    assert done.returncode == -signal.SIGKILL
    losses, trainer, checkpoint = train(tmp_path, resume=True)
    whole_losses, whole_trainer, whole_checkpoint = uninterrupted
    assert losses == {iteration: whole_losses[iteration] for iteration in range(9, 17)}
    for name, tensor in trainer.network.state_dict().items():
        assert torch.equal(tensor, whole_trainer.network.state_dict()[name]), name
    assert (checkpoint.best_loss, checkpoint.best_epoch) == (whole_checkpoint.best_loss, whole_checkpoint.best_epoch)


def test_an_interrupted_run_resumes_bit_for_bit_in_the_same_process(tmp_path, uninterrupted):
    first, _, _ = train(tmp_path, stop_at=6)
    rest, _, _ = train(tmp_path, resume=True)
    assert first == {iteration: uninterrupted[0][iteration] for iteration in range(1, 7)}
    assert rest == {iteration: uninterrupted[0][iteration] for iteration in range(5, 17)}


def test_last_and_best_are_kept_and_load_with_weights_only(tmp_path):
    _, _, checkpoint = train(tmp_path, epochs=2)
    last, best = (torch.load(tmp_path / "checkpoints" / name, weights_only=True) for name in ("last.pt", "best.pt"))
    assert sorted(file.name for file in (tmp_path / "checkpoints").iterdir()) == ["best.pt", "last.pt"]
    assert (last["epoch"], last["iteration"]) == (2, 8)
    assert best["epoch"] == checkpoint.best_epoch == best["best_epoch"]
    assert not any(name.startswith("module.") for name in last["network"])


def test_a_higher_validation_loss_leaves_the_best_checkpoint(tmp_path):
    _, trainer, checkpoint = train(tmp_path, epochs=2)
    before = (tmp_path / "checkpoints" / "best.pt").read_bytes()
    checkpoint.best_loss = 0.0
    checkpoint._save(trainer)
    assert (tmp_path / "checkpoints" / "best.pt").read_bytes() == before


def test_a_run_that_goes_on_with_another_metric_looks_for_its_best_anew(tmp_path):
    _, _, first = train(tmp_path, epochs=2, key_metric="validation/zero_predictor")
    _, _, checkpoint = train(tmp_path, epochs=3, resume=True)
    assert checkpoint.best_loss > first.best_loss, "else this test shows nothing"
    assert checkpoint.best_epoch == 3


def test_a_longer_run_stretches_the_schedule_and_takes_the_new_learning_rate(tmp_path):
    train(tmp_path, epochs=2, total=4)
    _, trainer, _ = train(tmp_path, epochs=8, resume=True, lr=0.02)
    rates = []
    _, whole, _ = train(tmp_path / "whole", epochs=8, lr=0.02)
    rates = [engine.optimizer.param_groups[0]["lr"] for engine in (trainer, whole)]
    assert rates[0] == rates[1]
    first = _resumed_rate(tmp_path / "first")
    assert first[0] == pytest.approx(first[1]) and first[0] > 0, "the first step has the rate of its place, too"
    assert trainer.state.epoch == 8
    assert trainer.optimizer.param_groups[0]["initial_lr"] == 0.02


def _resumed_rate(folder: Path) -> tuple[float, float]:
    """The rate of the first step after a finished run was made longer, and what the longer schedule says."""
    train(folder, epochs=2, total=2)
    old = torch.load(folder / "checkpoints/last.pt", weights_only=True)
    assert old["optimizer"]["param_groups"][0]["lr"] < 1e-6, "the end of a cosine"
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.01)
    steps = old["lr_scheduler"]["last_epoch"]
    schedule = WarmupCosineSchedule(optimizer, warmup_steps=1, t_total=2 * steps, warmup_multiplier=0.01)
    _load_schedule(schedule, old["lr_scheduler"])
    return optimizer.param_groups[0]["lr"], 0.01 * schedule.lr_lambdas[0](steps)


def test_a_longer_fine_tuning_goes_on_with_the_rate_of_its_place():
    def schedule(steps: int) -> FineTuneSchedule:
        groups = [{"params": [torch.nn.Parameter(torch.zeros(1))], "part": part} for part in ("encoder", "head")]
        return FineTuneSchedule(torch.optim.SGD(groups, lr=0.01), kind="sawtooth", t_total=steps, warmup_steps=2)

    finished, longer, expected = schedule(10), schedule(20), schedule(20)
    for one in [finished] * 10 + [expected] * 10:
        one.optimizer.step()
        one.step()
    _load_schedule(longer, finished.state_dict())
    rates = [[group["lr"] for group in one.optimizer.param_groups] for one in (longer, expected)]
    assert rates[0] == pytest.approx(rates[1]) and min(rates[0]) > 0.001


def test_a_finished_run_says_so_and_trains_no_more(tmp_path, caplog):
    train(tmp_path, epochs=2)
    caplog.set_level(logging.INFO, logger="bundle")
    losses, trainer, _ = train(tmp_path, epochs=2, resume=True)
    assert losses == {}
    assert trainer.last_event_name == Events.TERMINATE, "nothing is published again"
    assert "is finished: 2 of 2 epochs; raise --epochs to go on" in caplog.text


def test_another_network_is_an_error_that_names_some_tensors(tmp_path):
    train(tmp_path, epochs=1)
    with pytest.raises(UserError) as caught:
        train(tmp_path, epochs=2, resume=True, channels=5)
    assert "mask_token is [1, 3, 1, 1, 1] in the checkpoint, [1, 5, 1, 1, 1] in this network" in str(caught.value)
    assert "and 5 more" in str(caught.value)


def test_other_data_is_an_error(tmp_path):
    train(tmp_path, epochs=1)
    with pytest.raises(UserError, match="had 4 iterations per epoch and this run has 6"):
        train(tmp_path, epochs=2, resume=True, draws=12)


@pytest.mark.parametrize("damage", ["truncated", "text", "foreign", "list"])
def test_a_damaged_or_foreign_checkpoint_is_an_error_with_a_remedy(tmp_path, damage):
    train(tmp_path, epochs=1)
    path = tmp_path / "checkpoints" / "last.pt"
    if damage == "truncated":
        path.write_bytes(path.read_bytes()[:-1000])
    elif damage == "text":
        path.write_text("hello")
    else:
        torch.save({"state_dict": {}} if damage == "foreign" else [1], path)
    with pytest.raises(UserError, match=r"last.pt is .*resume another run"):
        train(tmp_path, epochs=2, resume=True)


def test_a_run_goes_on_from_a_part_that_had_no_rate(tmp_path):
    train(tmp_path, epochs=2, lr=0.0)
    _, trainer, _ = train(tmp_path, epochs=4, resume=True, lr=0.02)
    _, whole, _ = train(tmp_path / "whole", epochs=4, lr=0.02)
    assert trainer.optimizer.param_groups[0]["initial_lr"] == 0.02
    assert trainer.optimizer.param_groups[0]["lr"] == whole.optimizer.param_groups[0]["lr"]
