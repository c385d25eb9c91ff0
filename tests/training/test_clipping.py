# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
from __future__ import annotations

import copy

import pytest
import torch
from ignite.engine import Events
from monai.engines.utils import IterationEvents
from torch.optim import SGD

from bundle.errors import UserError
from bundle.training.clipping import ClipGradients

from .toy import ToyNetwork, toy_loader, toy_trainer


def trainer_with_clipping(max_norm, draws=8, **more):
    network = ToyNetwork()
    optimizer = SGD(network.parameters(), lr=1.0)
    clip = ClipGradients(optimizer=optimizer, max_norm=max_norm)
    return toy_trainer(network, optimizer, toy_loader(draws), 1, [clip], **more)


def weights(trainer):
    return torch.cat([parameter.detach().flatten() for parameter in trainer.network.parameters()])


def test_a_step_is_no_longer_than_the_largest_norm_and_the_norm_is_logged():
    trainer = trainer_with_clipping(max_norm=1e-3, draws=2)
    before = weights(trainer).clone()
    trainer.run()
    assert (weights(trainer) - before).norm() == pytest.approx(1e-3, rel=1e-3)
    assert trainer.state.output["pred"]["terms"]["gradient_norm"] > 1e-3


def test_accumulated_gradients_are_clipped_once_per_step():
    trainer = trainer_with_clipping(max_norm=1e9, accumulation_steps=2)
    logged, norms = [], []

    @trainer.on(IterationEvents.BACKWARD_COMPLETED)
    def norm(engine):
        norms.append(torch.stack([parameter.grad.norm() for parameter in engine.network.parameters()]).norm())

    trainer.add_event_handler(
        Events.ITERATION_COMPLETED,
        lambda engine: logged.append(engine.state.output["pred"]["terms"].get("gradient_norm")),
    )
    trainer.run()
    assert [value is not None for value in logged] == [False, True, False, True]
    torch.testing.assert_close(torch.stack(logged[1::2]), torch.stack(norms[1::2]))


def test_a_gradient_that_is_not_finite_stops_before_the_weights_change():
    trainer = trainer_with_clipping(max_norm=1.0)
    kept = []

    @trainer.on(IterationEvents.BACKWARD_COMPLETED)
    def spoil(engine):
        if engine.state.iteration == 2:
            kept.append(copy.deepcopy(weights(engine)))
            engine.network.head.weight.grad[:] = float("nan")

    with pytest.raises(UserError, match=r"not finite in epoch 1, iteration 2: .* --resume and a lower --lr"):
        trainer.run()
    assert torch.equal(weights(trainer), kept[0])
