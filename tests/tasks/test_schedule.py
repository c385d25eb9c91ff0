# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
from __future__ import annotations

import pytest
import torch
from torch.optim import SGD

from bundle.tasks import fine_tune_schedule
from bundle.transfer import FineTuneSchedule


def optimizer() -> SGD:
    groups = [{"params": [torch.nn.Parameter(torch.zeros(1))], "part": part} for part in ("rest", "encoder")]
    return SGD(groups, lr=0.1)


def test_epochs_become_steps_of_the_loader():
    made = fine_tune_schedule(
        optimizer(), kind="sawtooth", loader=range(8), epochs=5, warmup_epochs=0.5, decoder_share=0.4
    )
    by_hand = FineTuneSchedule(optimizer(), kind="sawtooth", t_total=40, warmup_steps=4, decoder_share=0.4)
    assert made.state_dict() == by_hand.state_dict()


@pytest.mark.parametrize(("epochs", "warmup"), [(6, 30), (2, 10), (50, 250), (100, 250), (0.01, 1)])
def test_a_warm_up_that_is_not_given_is_a_tenth_of_the_training_and_at_most_5_epochs(epochs, warmup, caplog):
    made = fine_tune_schedule(optimizer(), kind="full", loader=range(50), epochs=epochs)
    assert made.warmup_steps == warmup
    assert not caplog.messages


def test_a_warm_up_longer_than_half_of_the_training_is_cut():
    assert fine_tune_schedule(optimizer(), kind="full", loader=range(8), epochs=2, warmup_epochs=5).warmup_steps == 8
