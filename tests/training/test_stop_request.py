# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""bundle/training/stop_request.py: what the processes agree on; a stand-in for NCCL, which needs GPUs."""

from __future__ import annotations

import signal
import time
from typing import Any

import pytest
import torch

from bundle.training import stop_request as module
from bundle.training.stop_request import StopRequest, Wanted

NOTHING, SAVE, STOP = Wanted(save=False, stop=False), Wanted(save=True, stop=False), Wanted(save=True, stop=True)


@pytest.fixture
def others(monkeypatch: pytest.MonkeyPatch) -> list[list[int]]:
    """What another process wants in each step, to be filled; NCCL's messages arrive in a later step."""
    wanted: list[list[int]] = []

    def all_reduce(values: torch.Tensor, _: Any) -> None:
        values.copy_(torch.maximum(values, torch.tensor(wanted.pop(0) if wanted else [0, 0])))

    monkeypatch.setattr(module, "world_size", lambda: 2)
    monkeypatch.setattr(module.dist, "get_backend", lambda: "nccl")
    monkeypatch.setattr(module.dist, "all_reduce", all_reduce)
    # no GPU here; a tensor that is made on one is copied there, and the host waits for all that is queued
    monkeypatch.setattr(module, "send", lambda values, device: {"cuda": values}[device.type])
    monkeypatch.setattr(module, "_copy", lambda values: values.tolist)
    return wanted


def test_on_gpus_all_act_on_what_was_wanted_in_the_step_before(others: list[list[int]]) -> None:
    request = StopRequest()
    others += [[0, 0], [0, 1], [0, 0]]
    assert [request.agree() for _ in range(4)] == [NOTHING, NOTHING, STOP, NOTHING]
    request.received = signal.SIGUSR1
    assert [request.agree() for _ in range(2)] == [NOTHING, STOP]


def test_a_checkpoint_by_time_is_asked_for_once_though_it_comes_later(
    others: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    request, now = StopRequest(save_minutes=1), time.monotonic()
    clock = iter([now + 59, now + 61, now + 61, now + 62, now + 63, now + 64])
    monkeypatch.setattr(module.time, "monotonic", lambda: next(clock))
    assert [request.agree() for _ in range(5)] == [NOTHING, NOTHING, SAVE, NOTHING, NOTHING]
    assert not others


def test_one_process_agrees_with_itself_at_once() -> None:
    request = StopRequest(save_minutes=1e-9)
    assert request.agree() == SAVE
    request.received = signal.SIGTERM
    assert request.agree() == STOP
