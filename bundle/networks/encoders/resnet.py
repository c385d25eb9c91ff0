# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""ResNet and its relative with squeeze-and-excitation, SENet: no level at full resolution."""

from __future__ import annotations

from typing import Any

from monai.networks.nets.resnet import ResNet
from monai.networks.nets.senet import SENet
from torch import nn

from bundle.cells import triple
from bundle.networks.encoders.encoder import Stage

__all__ = ["resnet_stages", "senet_stages"]


def resnet_stages(network: ResNet) -> list[Stage]:
    """The stem, and the four layers; without max pooling the stem is part of the first layer's level.

    Shortcut "A" (ResNet 18 and 34 of `ResNetFeatures`) passes no gradient: MONAI detaches it.
    """
    stem: tuple[nn.Module, ...] = (network.conv1, network.bn1, network.act)
    stride = triple(network.conv1.stride)
    layers = [network.layer1, network.layer2, network.layer3, network.layer4]
    if network.no_max_pool:
        first = [Stage((*stem, network.layer1), _out_channels(network.layer1), stride)]
    else:
        first = [
            Stage(stem, network.conv1.out_channels, stride),
            Stage((network.maxpool, network.layer1), _out_channels(network.layer1), triple(network.maxpool.stride)),
        ]
    return first + [Stage((layer,), _out_channels(layer), triple(layer[0].stride)) for layer in layers[1:]]


def _out_channels(layer: nn.Sequential) -> int:
    last: Any = layer[-1]  # a basic block has two convolutions, a bottleneck three
    channels: int = getattr(last, "conv3", last.conv2).out_channels
    return channels


def senet_stages(network: SENet) -> list[Stage]:
    """The stem, and the four layers, the first after max pooling."""
    *stem, pool = network.layer0
    convolutions = [module for module in stem if isinstance(module, nn.Conv3d)]
    stages = [Stage(tuple(stem), convolutions[-1].out_channels, triple(2))]
    for depth, layer in enumerate((network.layer1, network.layer2, network.layer3, network.layer4)):
        modules = (pool, layer) if depth == 0 else (layer,)
        stages.append(Stage(modules, layer[-1].conv3.conv.out_channels, triple(2)))
    return stages
