# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
from __future__ import annotations

from bundle.training.parameters import parameter_groups

from .toy import ToyNetwork


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
