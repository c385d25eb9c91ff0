# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""SegResEncoder, the encoder of SegResNetDS, Auto3DSeg and VISTA3D, and its elder SegResNet."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from monai.networks.nets.segresnet import SegResNet
from monai.networks.nets.segresnet_ds import SegResEncoder, SegResNetDS
from torch import nn

from bundle.cells import triple
from bundle.networks.encoders.encoder import Stage
from bundle.networks.encoders.scale import Stream

__all__ = ["segres_encoder_stages", "segresnet_ds_stages", "segresnet_stages"]


def segres_encoder_stages(network: SegResEncoder) -> list[Stage]:
    """One level per entry of `blocks_down`; each begins with the level before's strided convolution."""
    stages: list[Stage] = []
    before: nn.Module = network.conv_init
    for depth, layer in enumerate(network.layers):
        step = triple(getattr(before, "stride", 1))
        blocks = layer["blocks"]
        stages.append(Stage((before, blocks), network.init_filters * 2**depth, step, _stream(before, blocks)))
        before = layer["downsample"]
    return stages


def segresnet_ds_stages(network: SegResNetDS) -> list[Stage]:
    """Those of its encoder."""
    return segres_encoder_stages(network.encoder)


def segresnet_stages(network: SegResNet) -> list[Stage]:
    """One level per entry of `blocks_down`, each at half the resolution of the one before."""
    before = [network.convInit] if network.dropout_prob is None else [network.convInit, network.dropout]
    stages = []
    for depth, layer in enumerate(network.down_layers):
        step = triple(1 if depth == 0 else 2)
        entry, *blocks = layer  # at the finest level an identity
        stream = _stream(before[0] if depth == 0 else entry, blocks)
        stages.append(Stage((*before, layer), network.init_filters * 2**depth, step, stream))
        before = []
    return stages


def _stream(entry: nn.Module, blocks: Iterable[nn.Module]) -> Stream:
    """Of pre-activation residual blocks."""
    parts: list[Any] = list(blocks)
    return Stream((entry,), tuple(block.conv2 for block in parts), tuple(block.norm1 for block in parts))
