# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""What an encoder was built with, read from the names and shapes of its tensors."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

__all__ = ["name_foreign_network", "resnet_arguments", "segres_encoder_arguments", "segresnet_arguments"]

_Weights = Mapping[str, Tensor]

#: networks of others' published weights that no encoder here can be, by the names of their tensors
_FOREIGN = {
    # "layers1.0.0." in the weights of MONAI's disruptive autoencoder
    r"(^|\.)(swinViT\.|layers1\.0\.(0\.)?blocks\.\d+\.attn\.)": "a Swin transformer, such as SwinUNETR's",
    r"(^|\.)blocks\.\d+\.attn\.qkv\.": "a vision transformer, such as 3DINO's",
    r"(^|\.)down_tr64\.ops\.\d+\.conv1\.": "the UNet3D of Models Genesis",
    r"(^|\.)conv_blocks_context\.": "STU-Net or an nnU-Net of version 1",
}

#: MONAI's ResNets by the number of their blocks, and whether these are bottlenecks
_RESNETS: dict[tuple[tuple[int, ...], bool], str] = {
    ((1, 1, 1, 1), False): "resnet10",
    ((2, 2, 2, 2), False): "resnet18",
    ((3, 4, 6, 3), False): "resnet34",
    ((3, 4, 6, 3), True): "resnet50",
    ((3, 4, 23, 3), True): "resnet101",
    ((3, 8, 36, 3), True): "resnet152",
    ((3, 24, 36, 3), True): "resnet200",
}


def segres_encoder_arguments(weights: _Weights) -> dict[str, Any] | None:
    """Those of a MONAI SegResEncoder, or None if this is none.

    An affine norm without running statistics is taken for InstanceNorm: GroupNorm has the same tensors.

    Args:
        weights: the encoder's tensors alone.
    """
    stem = weights.get("conv_init.weight")
    blocks = _count(weights, r"layers\.(\d+)\.blocks\.(\d+)\.")
    if stem is None or stem.ndim != 5 or not blocks:
        return None
    norm: Any = "instance"
    if "layers.0.blocks.0.norm1.running_mean" in weights:
        norm = "batch"
    elif "layers.0.blocks.0.norm1.weight" in weights:
        norm = ["instance", {"affine": True}]
    arguments = {"init_filters": stem.shape[0], "blocks_down": list(blocks), "norm": norm}
    return {"name": "SegResEncoder", "in_channels": stem.shape[1], **arguments}


def segresnet_arguments(weights: _Weights) -> dict[str, Any] | None:
    """Those of a MONAI SegResNet's encoder, with its usual GroupNorm, or None if this is none."""
    stem = weights.get("convInit.conv.weight")
    blocks = _count(weights, r"down_layers\.(\d+)\.(\d+)\.conv1\.conv\.")
    if stem is None or stem.ndim != 5 or not blocks:
        return None
    return {
        "name": "SegResNet",
        "in_channels": stem.shape[1],
        "init_filters": stem.shape[0],
        "blocks_down": list(blocks),
        "blocks_up": [1] * (len(blocks) - 1),
    }


def resnet_arguments(weights: _Weights) -> dict[str, Any] | None:
    """Those of MONAI's ResNetFeatures, which has MedicalNet's names, or None if this is none.

    MedicalNet's last two layers have stride 1 and dilations of 2 and 4, where MONAI's have stride 2 and none.
    """
    stem = weights.get("conv1.weight")
    blocks = _count(weights, r"layer(\d+)\.(\d+)\.conv1\.")
    name = _RESNETS.get((blocks, "layer1.0.conv3.weight" in weights))
    if stem is None or tuple(stem.shape[2:]) != (7, 7, 7) or name is None:
        return None
    return {"name": "ResNetFeatures", "model_name": name, "in_channels": stem.shape[1], "pretrained": False}


def name_foreign_network(weights: _Weights) -> str:
    """Names the network of others' weights if no encoder here can be that network; "" of all others.

    Args:
        weights: a state dict.
    """
    return next((name for names, name in _FOREIGN.items() if any(re.search(names, key) for key in weights)), "")


def _count(weights: _Weights, pattern: str) -> tuple[int, ...]:
    """The number of blocks in each layer, by names that hold the numbers of both."""
    found = {(int(m[1]), int(m[2])) for key in weights if (m := re.match(pattern, key))}
    layers = sorted({layer for layer, _ in found})
    return tuple(sum(layer == one for one, _ in found) for layer in layers)
