# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""SegResEncoder, the encoder of SegResNetDS, Auto3DSeg and VISTA3D, and its elder SegResNet."""

from __future__ import annotations

from monai.networks.nets.segresnet import SegResNet
from monai.networks.nets.segresnet_ds import SegResEncoder, SegResNetDS
from torch import nn

from bundle.networks.encoders.encoder import Stage
from bundle.sparse.windows import triple

__all__ = ["segres_encoder_stages", "segresnet_ds_stages", "segresnet_stages"]


def segres_encoder_stages(network: SegResEncoder) -> list[Stage]:
    """One level per entry of `blocks_down`; each begins with the level before's strided convolution."""
    stages: list[Stage] = []
    before: nn.Module = network.conv_init
    for depth, layer in enumerate(network.layers):
        step = triple(getattr(before, "stride", 1))
        stages.append(Stage((before, layer["blocks"]), network.init_filters * 2**depth, step))
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
        stages.append(Stage((*before, layer), network.init_filters * 2**depth, step))
        before = []
    return stages
