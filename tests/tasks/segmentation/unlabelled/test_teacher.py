# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
from __future__ import annotations

import copy
from math import exp

import pytest
import torch
from torch import nn

from bundle.errors import UserError
from bundle.tasks.segmentation.unlabelled import MeanTeacher, SigmoidRampUp


def student() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv3d(1, 2, 1), nn.BatchNorm3d(2)).double()


def train(network: nn.Module, optimizer: torch.optim.Optimizer, steps: int) -> list[dict[str, torch.Tensor]]:
    """The weights after each step."""
    after = []
    for _ in range(steps):
        optimizer.zero_grad()
        (network(torch.randn(2, 1, 2, 2, 2).double()) ** 3).sum().backward()
        optimizer.step()
        after.append({name: tensor.detach().clone() for name, tensor in network.state_dict().items()})
    return after


def test_the_average_is_the_papers_with_a_plain_mean_at_first():
    network = student()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.05)
    teacher = MeanTeacher(network=network, optimizer=optimizer, decay=0.75)
    weights = train(network, optimizer, 7)
    for name in ("0.weight", "0.bias", "1.weight", "1.bias"):
        average = torch.zeros_like(weights[0][name])
        for step, after in enumerate(weights, start=1):
            keep = min(1 - 1 / step, 0.75)
            average = keep * average + (1 - keep) * after[name]
        assert torch.allclose(teacher.network.state_dict()[name], average, rtol=1e-12, atol=1e-12)
        assert not torch.allclose(average, weights[-1][name])
    assert teacher.steps == 7
    assert torch.equal(teacher.network[1].running_mean, weights[-1]["1.running_mean"])


def test_before_the_first_step_the_teacher_is_the_student_as_it_is_then():
    network = student()
    teacher = MeanTeacher(network=network, optimizer=torch.optim.SGD(network.parameters(), lr=1.0))
    with torch.no_grad():
        network[0].weight.fill_(3.0)  # as fitted heads
    image = torch.randn(1, 1, 2, 2, 2).double()
    assert torch.equal(teacher(image), copy.deepcopy(network).eval()(image))
    assert not teacher.network.training and not any(p.requires_grad for p in teacher.network.parameters())


def test_a_resume_goes_on_from_the_teachers_state():
    whole, part = student(), student()
    optimizers = [torch.optim.SGD(network.parameters(), lr=0.05) for network in (whole, part)]
    teachers = [MeanTeacher(network=n, optimizer=o, decay=0.9) for n, o in zip((whole, part), optimizers)]
    train(whole, optimizers[0], 3)
    part.load_state_dict(whole.state_dict())
    teachers[1].load_state_dict(copy.deepcopy(teachers[0].state_dict()))
    for network, optimizer in zip((whole, part), optimizers):
        torch.manual_seed(1)
        train(network, optimizer, 2)
    states = [teacher.state_dict() for teacher in teachers]
    assert states[0]["steps"] == states[1]["steps"] == 5
    assert all(torch.equal(tensor, states[1]["network"][name]) for name, tensor in states[0]["network"].items())


def test_the_product_is_chosen_by_its_name():
    network = student()
    teacher = MeanTeacher(network=network, optimizer=torch.optim.SGD(network.parameters(), lr=1.0))
    assert teacher.choose("network") is network and teacher.choose("teacher") is teacher.network
    with pytest.raises(UserError, match="--product 'best' is not known: choose one of teacher, network"):
        teacher.choose("best")


@pytest.mark.parametrize("decay", [-0.1, 1.0])
def test_a_decay_that_cannot_be_is_refused(decay: float):
    network = student()
    with pytest.raises(UserError, match=f"--teacher_decay {decay} does not fit"):
        MeanTeacher(network=network, optimizer=torch.optim.SGD(network.parameters(), lr=1.0), decay=decay)


def test_without_a_decay_the_teacher_remembers_a_tenth_of_the_training():
    network = student()
    optimizer = torch.optim.SGD(network.parameters(), lr=1.0)
    made = [MeanTeacher(network=network, optimizer=optimizer, decay=None, steps=s).decay for s in (5, 100, 500, 9000)]
    assert made == pytest.approx([0, 0.9, 0.98, 0.99])


def test_the_weight_of_the_unlabelled_rises_as_the_papers_sigmoid():
    network = student()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.01)
    teacher = MeanTeacher(network=network, optimizer=optimizer)
    ramp = SigmoidRampUp(teacher=teacher, steps=10, share=0.4, weight=0.5)
    found = []
    for _ in range(6):
        found.append(ramp())
        train(network, optimizer, 1)
    assert found == pytest.approx([0.5 * exp(-5 * (1 - min(t, 4) / 4) ** 2) for t in range(6)], rel=1e-12)
    assert found[4] == found[5] == 0.5 and SigmoidRampUp(teacher=teacher, steps=9, share=0, weight=0.2)() == 0.2
    for wrong, option in (({"weight": -1}, "--unlabelled_weight"), ({"share": -1}, "--unlabelled_ramp_up")):
        with pytest.raises(UserError, match=option):
            SigmoidRampUp(**{"teacher": teacher, "steps": 4, **wrong})
