# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
from __future__ import annotations

from monai.handlers import LrScheduleHandler
from monai.optimizers import WarmupCosineSchedule
from torch.optim import SGD

from bundle.runs.steps import training_steps, warmup_steps
from bundle.training.optimization import parameter_groups, warmup_cosine

from .toy import ToyNetwork, toy_loader, toy_trainer


def test_only_convolution_weights_decay():
    network = ToyNetwork()
    decayed, free = parameter_groups(network, 0.1)
    names = {parameter: name for name, parameter in network.named_parameters()}
    assert [names[parameter] for parameter in decayed["params"]] == ["encoder.0.weight", "head.weight"]
    assert (decayed["weight_decay"], free["weight_decay"]) == (0.1, 0.0)
    assert {names[parameter] for parameter in free["params"]} == {
        "mask_token", "encoder.0.bias", "encoder.1.weight", "encoder.1.bias", "head.bias",
    }  # fmt: skip


def test_frozen_parameters_are_left_out():
    network = ToyNetwork()
    network.encoder.requires_grad_(False)
    groups = parameter_groups(network, 0.1)
    assert sum(len(group["params"]) for group in groups) == 3


def test_the_cosine_ends_with_the_last_iteration():
    loader, network = toy_loader(), ToyNetwork()
    optimizer = SGD(network.parameters(), lr=1.0)
    assert training_steps(loader, 3) == 12
    schedule = warmup_cosine(optimizer, loader=loader, epochs=3, warmup_epochs=0.5, end_lr=1e-4)
    toy_trainer(network, optimizer, loader, 3, [LrScheduleHandler(schedule, print_lr=False, epoch_level=False)]).run()
    assert schedule.warmup_steps == 2
    assert optimizer.param_groups[0]["lr"] == 1e-4


def test_the_rates_are_those_of_monais_schedule_with_the_steps_counted_by_hand():
    rates = []
    for make in (
        lambda optimizer: warmup_cosine(optimizer, loader=range(4), epochs=5, warmup_epochs=1),
        lambda optimizer: WarmupCosineSchedule(optimizer, warmup_steps=4, t_total=20, warmup_multiplier=0.01),
    ):
        optimizer = SGD(ToyNetwork().parameters(), lr=0.5)
        schedule = make(optimizer)
        rates.append([])
        for _ in range(20):
            rates[-1].append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            schedule.step()
    assert rates[0] == rates[1]
    assert rates[0][0] == 0.005 and max(rates[0]) == 0.5


def test_part_of_an_epoch_is_at_least_one_step():
    assert training_steps(range(4), 0.01) == 1


def test_a_warm_up_longer_than_half_of_the_run_is_cut_with_a_warning(caplog):
    assert warmup_steps(range(10), 5, 10) == 50
    assert not caplog.messages
    assert warmup_steps(range(10), 5, 3) == 15
    assert warmup_steps(range(1), 5, 1) == 1
    assert caplog.messages[0].startswith("warmup_epochs is 5 of 3 epochs")
