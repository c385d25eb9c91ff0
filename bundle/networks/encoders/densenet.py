# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""DenseNet: no level at full resolution."""

from __future__ import annotations

from monai.networks.nets.densenet import DenseNet
from torch import nn

from bundle.cells import triple
from bundle.networks.encoders.encoder import Stage

__all__ = ["densenet_stages"]


def densenet_stages(network: DenseNet) -> list[Stage]:
    """The stem, and one level per dense block, each after the pooling that leads to it."""
    parts = dict(network.features.named_children())
    stem = (parts["conv0"], parts["norm0"], parts["relu0"])
    stages = [Stage(stem, parts["conv0"].out_channels, triple(parts["conv0"].stride))]
    before: nn.Module = parts["pool0"]
    depth = 1
    while f"transition{depth}" in parts:
        transition = parts[f"transition{depth}"]
        stages.append(Stage((before, parts[f"denseblock{depth}"]), transition.conv.in_channels, triple(2)))
        before, depth = transition, depth + 1
    last = (before, parts[f"denseblock{depth}"], parts["norm5"])
    return [*stages, Stage(last, network.class_layers.out.in_features, triple(2))]
