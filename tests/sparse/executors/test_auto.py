# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""The executor that measures."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from bundle.sparse import SparseVolume, checkpoint_volumes
from bundle.sparse.convolution import methods
from bundle.sparse.executors import auto
from tests.sparse.examples import example

#: those that a CPU has
METHODS = [name for name, method in methods.METHODS.items() if method.runs_on(torch.device("cpu"))]


@pytest.fixture(autouse=True)
def nothing_measured_yet(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(auto, "_FASTEST", {})


def volume(executor: str = "auto") -> SparseVolume:
    visible = example()[1]
    image = torch.randn(2, 4, 8, 12, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    return SparseVolume.from_dense(image, visible, executor)  # blocks of 4x4x4 sites: every method applies


@pytest.mark.parametrize("quick", METHODS)
def test_it_takes_the_method_with_the_least_time(quick: str, monkeypatch: pytest.MonkeyPatch):
    asked: list[str] = []

    def seconds(call, device) -> float:
        asked.append(call.args[-1])
        call()
        return 0.1 if asked[-1] == quick else 0.2

    used: list[str | None] = []
    convolve = auto.convolve
    monkeypatch.setattr(auto, "_seconds", seconds)
    monkeypatch.setattr(auto, "convolve", lambda *args: used.append(args[7]) or convolve(*args))
    torch.manual_seed(0)
    layer = nn.Conv3d(4, 3, 3, padding=1).double()
    out = layer(volume())
    assert sorted(asked) == sorted(METHODS)
    assert used[-1] == quick
    torch.testing.assert_close(out.to_dense(), layer(volume("cells")).to_dense(), rtol=1e-12, atol=1e-12)


def test_it_measures_once_for_convolutions_alike_and_again_for_another(monkeypatch: pytest.MonkeyPatch):
    calls: list[object] = []
    monkeypatch.setattr(auto, "_seconds", lambda *call: calls.append(call) or 0.0)
    layer, other = nn.Conv3d(4, 4, 3, padding=1).double(), nn.Conv3d(4, 5, 3, padding=1).double()
    layer(layer(volume()))
    assert len(calls) == len(METHODS)
    other(volume())
    assert len(calls) == 2 * len(METHODS)


def test_measuring_leaves_gradients_and_random_numbers_alone():
    layer = nn.Conv3d(4, 4, 3, padding=1).double()
    state = torch.get_rng_state()
    out = layer(volume())
    assert torch.equal(torch.get_rng_state(), state)
    assert layer.weight.grad is None
    out.features.sum().backward()
    assert layer.weight.grad is not None


def test_under_autocast_and_without_gradients_it_still_measures_and_runs():
    layer = nn.Conv3d(4, 4, 3, padding=1)
    image, visible = example()
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        out = layer(SparseVolume.from_dense(image.float(), visible, "auto"))
    assert out.dtype == torch.bfloat16
    assert not out.requires_grad


def test_it_measures_under_activation_checkpointing():
    torch.manual_seed(0)
    layer = nn.Sequential(nn.Conv3d(4, 4, 3, padding=1), nn.ReLU(), nn.Conv3d(4, 4, 3, padding=1)).double()
    found = []
    for executor in ("auto", "cells"):
        layer.zero_grad()
        checkpoint_volumes(layer, volume(executor)).to_dense().square().sum().backward()
        found.append([parameter.grad.clone() for parameter in layer.parameters()])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def test_it_measures_in_inference_as_in_training(caplog: pytest.LogCaptureFixture):
    layer = nn.Conv3d(4, 3, 3, padding=1).double()
    with torch.inference_mode():
        out = layer(volume())
    assert not caplog.records and len(auto._FASTEST) == 1
    torch.testing.assert_close(out.to_dense(), layer(volume("cells")).to_dense().detach(), rtol=1e-12, atol=1e-12)


def test_what_cannot_be_measured_is_not_kept(monkeypatch: pytest.MonkeyPatch):
    def fails(*_: object) -> float:
        raise RuntimeError("out of memory")

    with monkeypatch.context() as patched:
        patched.setattr(auto, "_seconds", fails)
        nn.Conv3d(4, 3, 3, padding=1).double()(volume())
    assert not auto._FASTEST
