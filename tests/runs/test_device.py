# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
from __future__ import annotations

import pytest
import torch

from bundle.errors import UserError
from bundle.runs.device import _cpu_computes_in, autocast_dtype, pick_device

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)


@pytest.fixture
def two_gpus(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)


@pytest.fixture
def no_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


def test_auto_is_the_cpu_without_a_gpu(no_gpu):
    assert pick_device("auto") == CPU


def test_auto_and_cuda_are_the_gpu_of_this_process(two_gpus, monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert pick_device("auto") == pick_device("cuda") == torch.device("cuda", 1)
    assert pick_device("cuda:0") == GPU
    assert pick_device(GPU) == GPU


def test_a_gpu_that_is_absent_is_an_error_with_the_remedy(no_gpu):
    with pytest.raises(UserError, match=r"cuda.*use --device cpu"):
        pick_device("cuda")


def test_a_gpu_beyond_the_count_is_an_error(two_gpus):
    with pytest.raises(UserError, match=r"GPU 9 .* has 2 \(0 to 1\)"):
        pick_device("cuda:9")


@pytest.mark.parametrize("name", ["mps", "meta", "xpu:0"])
def test_a_device_that_was_never_tried_is_an_error(name: str):
    with pytest.raises(UserError, match=f'device "{name}" has never been tried here: use --device auto, cpu'):
        pick_device(name)


def test_an_unknown_device_is_an_error():
    with pytest.raises(UserError, match='unknown device "gpu"'):
        pick_device("gpu")


def test_autocast_is_bfloat16_on_gpus_that_have_it(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: True)
    assert autocast_dtype(GPU, True) is torch.bfloat16
    assert autocast_dtype(GPU, False) is None
    assert autocast_dtype(CPU, True) is None
    assert autocast_dtype(CPU, "bfloat16") is torch.bfloat16
    assert autocast_dtype(GPU, "float16") is torch.float16


def test_a_gpu_without_bfloat16_trains_in_float32(monkeypatch, caplog):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: False)
    assert autocast_dtype(GPU, True) is None
    assert "float32" in caplog.text


@pytest.mark.parametrize("name", ["bfloat16", "float16"])
def test_half_precision_on_a_cpu_without_instructions_for_it_is_warned_about(name: str, monkeypatch, caplog):
    monkeypatch.setattr("bundle.runs.device._cpu_computes_in", lambda asked: asked != name)
    autocast_dtype(CPU, name)
    assert f"no instructions for {name}" in caplog.text and "--amp False" in caplog.text
    caplog.clear()
    autocast_dtype(CPU, "float16" if name == "bfloat16" else "bfloat16")
    autocast_dtype(CPU, True)
    autocast_dtype(GPU, name)
    assert not caplog.text


def test_what_a_cpu_computes_in_can_be_asked_of_this_pytorch():
    assert {_cpu_computes_in(name) for name in ("bfloat16", "float16")} <= {True, False}


def test_an_unknown_precision_is_an_error():
    with pytest.raises(UserError, match="float17"):
        autocast_dtype(GPU, "float17")
