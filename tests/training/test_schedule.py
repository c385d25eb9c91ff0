# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
from __future__ import annotations

from monai.handlers import LrScheduleHandler
from monai.optimizers import WarmupCosineSchedule
from torch.optim import SGD

from bundle.training.schedule import training_steps, warmup_steps

from .toy import ToyNetwork, toy_loader, toy_trainer


def test_the_cosine_ends_with_the_last_iteration():
    loader, network = toy_loader(), ToyNetwork()
    optimizer = SGD(network.parameters(), lr=1.0)
    assert training_steps(loader, 3) == 12
    schedule = WarmupCosineSchedule(optimizer, training_steps(loader, 0.5), training_steps(loader, 3), end_lr=1e-4)
    toy_trainer(network, optimizer, loader, 3, [LrScheduleHandler(schedule, print_lr=False, epoch_level=False)]).run()
    assert schedule.warmup_steps == 2
    assert optimizer.param_groups[0]["lr"] == 1e-4


def test_part_of_an_epoch_is_at_least_one_step():
    assert training_steps(range(4), 0.01) == 1


def test_a_warm_up_longer_than_half_of_the_run_is_cut_with_a_warning(caplog):
    assert warmup_steps(range(10), 5, 10) == 50
    assert not caplog.messages
    assert warmup_steps(range(10), 5, 3) == 15
    assert warmup_steps(range(1), 5, 1) == 1
    assert caplog.messages[0].startswith("warmup_epochs is 5 of 3 epochs")
