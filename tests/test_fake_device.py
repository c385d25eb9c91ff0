# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""A step of pre-training on a device that only pretends to be there: nothing stays on the CPU, nothing is waited for.

Torch's FakeTensorMode knows of each tensor its shape, type and device, and refuses an operation on two devices. A GPU
does, too, and the device "meta" does not. "lazy" is a device whose backward pass torch runs without a driver.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from monai.bundle import ConfigParser
from torch import Tensor, nn
from torch._subclasses.fake_tensor import (
    DynamicOutputShapeException,
    FakeTensor,
    FakeTensorMode,
    unset_fake_temporarily,
)

import bundle.networks.pretraining
import bundle.sparse.layout
from bundle.sparse import CellLayout

DEVICE = torch.device("lazy:0")
TINY = {"device": "cpu", "encoder#init_filters": 4, "encoder#blocks_down": [1, 1, 1]}
PRETEXT = {"_target_": "bundle.losses.PretextSegmentation", "channels": 4, "classes": 5}
#: files beside train.yaml, and options
STEPS: dict[str, tuple[list[str], dict[str, Any]]] = {
    "cells": ([], {}),
    "dense": ([], {"sparse": False}),
    "children and a teacher": (["mask_in_mask.yaml", "alignment_levels.yaml"], {"mask_in_mask#levels#0#size": [8] * 3}),
    "reconstruction alone": (["objective_reconstruction.yaml"], {"objectives": {}}),
}


class Device:
    """Pretends to be a device.

    Attributes:
        mode: of torch.
    """

    def __init__(self) -> None:
        self.mode = FakeTensorMode(allow_non_fake_inputs=True)

    def send(self, x: Any, *_: Any) -> Any:
        """The same on the device: of lists, dicts and objects with tensors, too. What is there already stays."""
        if isinstance(x, Tensor):
            if isinstance(x, FakeTensor):
                return x.to(DEVICE)
            with unset_fake_temporarily():
                x = x.detach()
            return self.mode.from_tensor(x).to(DEVICE)
        if isinstance(x, list):
            return [self.send(value) for value in x]
        if isinstance(x, dict):
            return {key: self.send(value) for key, value in x.items()}
        return x

    def send_network(self, network: nn.Module) -> None:
        """Parameters and buffers, in place."""
        for module in network.modules():
            for key, value in module._parameters.items():
                if value is not None:
                    module._parameters[key] = nn.Parameter(self.send(value), requires_grad=value.requires_grad)
            for key, value in module._buffers.items():
                module._buffers[key] = self.send(value)


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Device:
    """The device; masks stay real tensors on the CPU, where layouts count them."""
    pretended = Device()
    lay_out = CellLayout.__init__

    def on_cpu(self: CellLayout, visible: Tensor, device: torch.device | None = None) -> None:
        with unset_fake_temporarily():
            # two masks together have lost their values: all cells are visible then
            seen = torch.ones(visible.shape, dtype=torch.bool) if isinstance(visible, FakeTensor) else visible
            lay_out(self, seen, torch.device("cpu"))
        if device != torch.device("cpu"):
            self.visible, self.cells = pretended.send(self.visible), pretended.send(self.cells)

    @contextmanager
    def nothing(*args: Any, **kwargs: Any) -> Iterator[None]:  # there is no autocast for it
        yield

    monkeypatch.setattr(CellLayout, "__init__", on_cpu)
    monkeypatch.setattr(bundle.networks.pretraining, "send", pretended.send)
    monkeypatch.setattr(torch, "autocast", nothing)
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda *_: False)
    return pretended


@pytest.mark.parametrize("step", STEPS)
def test_a_step_of_pretraining_runs_on_the_device_alone(step: str, device: Device):
    files, options = STEPS[step]
    parser = ConfigParser()
    parser.read_config([f"configs/{file}" for file in ("train.yaml", *files)])
    parser.update({**TINY, "objectives#pretext": PRETEXT, **options})
    network, loss = parser.get_parsed_content("network_def"), parser.get_parsed_content("loss")
    image, target, _, arguments = parser.get_parsed_content("masked_batch")(crops(), torch.device("cpu"))
    with device.mode:
        device.send_network(network)
        children = target.pop("children")
        for level in children:  # their masks stay, too
            for key in ("image", "clean", "valid", "foreground", "spacing", "parent", "corner"):
                setattr(level, key, device.send(getattr(level, key)))
        trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
        optimizer = torch.optim.AdamW(trained)
        output = network(device.send(image), **{**arguments, "spacing": device.send(arguments["spacing"])})
        for level in children:
            level.hidden = device.send(level.hidden)
        target = {**device.send(target), "children": children}
        shared = loss.share_step([{**target, "visible": arguments["visible"], "hidden": arguments["hidden"]}], [1.0])
        value = loss(output, target)
        value.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
    assert {total.device for total in shared[0]["hidden_totals"]} == {DEVICE}
    assert {value.device, *(term.device for term in output["terms"].values())} == {DEVICE}
    assert {p.grad.device for p in trained if p.grad is not None} == {DEVICE}
    assert sum(p.grad is not None for p in trained) > len(trained) / 2


def crops() -> dict[str, Tensor]:
    size = (16, 16, 16)
    everywhere = torch.ones(2, 1, *size, dtype=torch.bool)
    image = torch.randn(2, 1, *size)
    more = {"clean": image, "pretext_class": torch.zeros(2, 1, *size, dtype=torch.uint8), "draw": torch.arange(2)}
    return {"image": image, "valid": everywhere, "foreground": everywhere, "spacing": torch.ones(2, 3), **more}


def test_the_device_refuses_what_a_gpu_would_refuse_or_wait_for(device: Device):
    with device.mode:
        x = device.send(torch.ones(3))
        with pytest.raises(RuntimeError, match="same device"):
            x + device.mode.from_tensor(torch.ones(3))
        with pytest.raises(DynamicOutputShapeException):
            x[x > 0]
