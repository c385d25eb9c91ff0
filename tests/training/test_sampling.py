# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
from __future__ import annotations

import pytest
from ignite.engine import Events
from torch.optim import SGD
from torch.utils.data import DataLoader

from bundle.training.sampling import SetSamplerEpoch

from .toy import ToyCrops, ToyNetwork, ToySampler, toy_trainer


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("finished_epochs", [0, 1])
def test_every_epoch_gets_its_own_draws_also_after_a_resume(workers, finished_epochs):
    loader = DataLoader(ToyCrops(), batch_size=2, sampler=ToySampler(4), num_workers=workers)
    network = ToyNetwork()
    trainer = toy_trainer(network, SGD(network.parameters(), lr=0.1), loader, 3, [SetSamplerEpoch(loader)])
    draws = {1: [], 2: [], 3: []}

    @trainer.on(Events.STARTED)
    def resume(engine):
        engine.state.epoch, engine.state.iteration = finished_epochs, finished_epochs * 2

    @trainer.on(Events.ITERATION_COMPLETED)
    def collect(engine):
        draws[engine.state.epoch] += engine.state.batch["draw"].tolist()

    trainer.run()
    expected = {1: [0, 1, 2, 3], 2: [4, 5, 6, 7], 3: [8, 9, 10, 11]}
    assert draws == {epoch: list_ if epoch > finished_epochs else [] for epoch, list_ in expected.items()}
