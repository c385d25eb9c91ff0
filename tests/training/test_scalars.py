# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
from __future__ import annotations

import pytest
import torch
from ignite.engine import Events
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.optim import SGD

from bundle.runs import RunFolder
from bundle.training.scalars import Scalars, latest_scalars
from bundle.training.tensorboard import TensorBoard

from .toy import SIZE, ToyNetwork, toy_evaluator, toy_loader, toy_trainer


def train(handlers, loader=None, epochs=2):
    network = ToyNetwork()
    optimizer = SGD(network.parameters(), lr=0.25)
    return toy_trainer(network, optimizer, loader or toy_loader(), epochs, handlers(optimizer))


def test_epoch_figures_are_means_over_crops(tmp_path):
    loader = toy_loader(draws=5, batch_size=2)  # the last batch has one crop
    trainer = train(lambda optimizer: [Scalars(name="train", optimizer=optimizer)], loader, epochs=1)
    losses = []
    trainer.add_event_handler(Events.ITERATION_COMPLETED, lambda engine: losses.append(engine.state.output["loss"]))
    trainer.run()
    metrics = trainer.state.metrics
    assert metrics["train/loss"] == pytest.approx(float(2 * losses[0] + 2 * losses[1] + losses[2]) / 5)
    assert metrics["train/learning_rate"] == 0.25
    assert metrics["train/voxels_per_second"] == pytest.approx(metrics["train/volumes_per_second"] * SIZE**3)
    assert 50 < metrics["train/peak_memory_mib"] < 50_000


def test_a_term_that_is_absent_in_some_iterations_is_averaged_over_the_others():
    trainer = train(lambda optimizer: [Scalars(name="train", optimizer=optimizer)], epochs=1)

    def add_term(engine):
        if engine.state.iteration % 2:
            engine.state.output["pred"]["terms"]["odd"] = torch.tensor(float(engine.state.iteration))

    trainer._event_handlers[Events.ITERATION_COMPLETED].insert(0, (add_term, (trainer,), {}))
    trainer.run()
    assert trainer.state.metrics["train/odd"] == 2  # of iterations 1 and 3


def test_figures_of_an_iteration_come_every_interval_and_reach_tensorboard(tmp_path):
    def handlers(optimizer):
        return [
            Scalars(name="train", interval=3, optimizer=optimizer),
            TensorBoard(run_folder=RunFolder(tmp_path), interval=3),
        ]

    trainer = train(handlers)
    seen = []
    trainer.add_event_handler(
        Events.ITERATION_COMPLETED, lambda engine: seen.append(latest_scalars(engine.state.output) is not None)
    )
    trainer.run()
    assert seen == [True, False, True, False, True, True, False, False]  # 1 and 5 begin an epoch; 3 and 6
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    steps = {tag: [event.step for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}
    for name in ("reconstruction", "learning_rate", "volumes_per_second", "voxels_per_second", "peak_memory_mib"):
        assert steps[name] == [3, 6]
        assert steps[f"train/{name}"] == [1, 2]


def test_validation_has_the_loss_terms_only():
    evaluator = toy_evaluator(ToyNetwork(), [Scalars(name="validation")])
    evaluator.run()
    assert set(evaluator.state.metrics) == {
        f"validation/{name}" for name in ("loss", "reconstruction", "zero_predictor", "mean_predictor")
    }
