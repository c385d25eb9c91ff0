# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
from __future__ import annotations

import torch
from ignite.engine import Events
from torch.optim import SGD

from bundle.training import ReestimateBatchNorm

from .toy import ToyNetwork, toy_loader, toy_trainer


def statistics_at_start(*, batches: int, epoch: int = 0) -> torch.Tensor:
    """The running mean when training starts, minus that of the first `batches` batches."""
    torch.manual_seed(0)
    network, loader = ToyNetwork(), toy_loader()
    network.encoder[1].running_mean.fill_(7)
    dense = torch.nn.Sequential(network.encoder)
    trainer = toy_trainer(network, SGD(network.parameters(), lr=0.0), loader, 3, [])
    trainer.add_event_handler(Events.STARTED, lambda engine: setattr(engine.state, "epoch", epoch))
    ReestimateBatchNorm(network=dense, loader=loader, batches=batches).attach(trainer)
    seen = []
    trainer.add_event_handler(Events.STARTED, lambda _: seen.append(network.encoder[1].running_mean.clone()))
    trainer.add_event_handler(Events.STARTED, lambda engine: engine.terminate())
    trainer.run()
    images = [batch["image"] for batch in loader][: max(1, batches)]
    with torch.no_grad():
        expected = torch.stack([network.encoder[0](image).mean((0, 2, 3, 4)) for image in images]).mean(0)
    return seen[0] - expected


def test_statistics_come_from_the_first_batches():
    assert statistics_at_start(batches=2).abs().max() < 1e-5
    assert statistics_at_start(batches=3).abs().max() < 1e-5


def test_a_resumed_run_and_zero_batches_keep_them():
    assert statistics_at_start(batches=2, epoch=1).abs().min() > 5
    assert statistics_at_start(batches=0).abs().min() > 5
