# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
from __future__ import annotations

import math

import pytest
import torch
from torch.optim import SGD

from bundle.errors import UserError
from bundle.transfer import FineTuneSchedule

TOTAL, WARMUP = 40, 4


def rates(kind: str, total: int = TOTAL, warmup: int = WARMUP, **more) -> tuple[list[float], list[float]]:
    """The rates of the rest (0.1) and of the encoder (0.02) as each step of the optimizer uses them."""
    groups = [
        {"params": [torch.nn.Parameter(torch.zeros(1))], "lr": lr, "part": part}
        for lr, part in ((0.1, "rest"), (0.02, "encoder"))
    ]
    optimizer = SGD(groups, lr=0.1)
    schedule = FineTuneSchedule(optimizer, kind=kind, t_total=total, warmup_steps=warmup, **more)
    used = []
    for _ in range(total):
        used.append([group["lr"] for group in optimizer.param_groups])
        optimizer.step()
        schedule.step()
    assert all(group["lr"] == pytest.approx(0, abs=1e-12) for group in optimizer.param_groups)  # after the last
    rest, encoder = zip(*used, strict=True)
    return list(rest), list(encoder)


def up_and_down(total: int, warmup: int) -> list[float]:
    up = [(step + 1) / warmup for step in range(warmup)]
    return up + [(1 + math.cos(math.pi * step / (total - warmup))) / 2 for step in range(total - warmup)]


def test_full_moves_all_up_a_line_and_down_a_cosine():
    rest, encoder = rates("full")
    assert rest == pytest.approx([0.1 * factor for factor in up_and_down(TOTAL, WARMUP)])
    assert encoder == pytest.approx([0.02 * factor for factor in up_and_down(TOTAL, WARMUP)])


def test_sawtooth_trains_the_rest_alone_for_a_quarter_then_all_anew():
    rest, encoder = rates("sawtooth")
    tooth = up_and_down(30, WARMUP)
    assert encoder == pytest.approx([0.0] * 10 + [0.02 * factor for factor in tooth])
    assert rest == pytest.approx([0.025, 0.05, 0.075, *[0.1] * 7] + [0.1 * factor for factor in tooth])


def test_the_share_of_the_first_phase_can_be_set():
    _, encoder = rates("sawtooth", decoder_share=0.5)
    assert encoder.count(0.0) == 20


def test_frozen_never_moves_the_encoder():
    rest, encoder = rates("frozen")
    assert encoder == [0.0] * TOTAL
    assert rest == pytest.approx([0.1 * factor for factor in up_and_down(TOTAL, WARMUP)])


def test_the_state_goes_into_a_checkpoint_of_plain_values():
    optimizer = SGD([{"params": [torch.nn.Parameter(torch.zeros(1))], "lr": 0.1, "part": "rest"}], lr=0.1)
    state = FineTuneSchedule(optimizer, t_total=9, warmup_steps=2).state_dict()
    assert {"kind": "full", "t_total": 9, "warmup_steps": 2, "decoder_share": 0.25}.items() <= state.items()


@pytest.mark.parametrize(("option", "said"), [({"kind": "half"}, "--schedule 'half'"), ({"decoder_share": 1}, "share")])
def test_what_does_not_fit_is_one_line(option: dict, said: str):
    optimizer = SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)
    with pytest.raises(UserError, match=said):
        FineTuneSchedule(optimizer, t_total=9, warmup_steps=2, **option)
