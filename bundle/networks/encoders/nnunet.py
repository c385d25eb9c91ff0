# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""nnU-Net's own networks, of the package dynamic-network-architectures: ResidualEncoderUNet and PlainConvUNet."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from bundle.cells import triple
from bundle.errors import UserError
from bundle.networks.encoders.encoder import Stage

__all__ = [
    "RESENC_L",
    "nnunet_arguments",
    "plain_conv_unet",
    "plain_conv_unet_stages",
    "residual_encoder_unet",
    "residual_unet_stages",
]

#: the arguments of nnU-Net's presets M, L and XL on data of nearly equal spacing; these differ in patch and batch size
RESENC_L: Mapping[str, Any] = {
    "n_stages": 6,
    "features_per_stage": [32, 64, 128, 256, 320, 320],
    "kernel_sizes": [[3, 3, 3]] * 6,
    "strides": [[1, 1, 1], *[[2, 2, 2]] * 5],
    "n_blocks_per_stage": [1, 3, 4, 6, 6, 6],
    "n_conv_per_stage_decoder": [1] * 5,
}

#: what nnU-Net's plans say of every 3D network
_ALWAYS: Mapping[str, Any] = {
    "input_channels": 1,
    "num_classes": 2,
    "conv_op": "torch.nn.modules.conv.Conv3d",
    "conv_bias": True,
    "norm_op": "torch.nn.modules.instancenorm.InstanceNorm3d",
    "norm_op_kwargs": {"eps": 1e-5, "affine": True},
    "dropout_op": None,
    "dropout_op_kwargs": None,
    "nonlin": "torch.nn.LeakyReLU",
    "nonlin_kwargs": {"inplace": True},
    "deep_supervision": False,
}
_CLASSES = ("conv_op", "norm_op", "dropout_op", "nonlin")  # which plans name by their import path


def residual_encoder_unet(**arguments: Any) -> nn.Module:
    """Builds nnU-Net's ResidualEncoderUNet ("ResEnc") as its plans do.

    Args:
        **arguments: `arch_kwargs` of a plan, as they stand in its json; those missing are nnU-Net's usual ones, and
            without `n_stages` those of ResEnc L.

    Raises:
        UserError: if the package is not installed, or an argument names no class of torch.nn.
    """
    return _build("ResidualEncoderUNet", arguments)


def plain_conv_unet(**arguments: Any) -> nn.Module:
    """Builds nnU-Net's PlainConvUNet as its plans do.

    Args:
        **arguments: as for `residual_encoder_unet`, with `n_conv_per_stage` for the blocks.

    Raises:
        UserError: as `residual_encoder_unet`.
    """
    return _build("PlainConvUNet", arguments)


def residual_unet_stages(network: Any) -> list[Stage]:
    """One level per stage of the encoder; the stem belongs to the first."""
    encoder = network.encoder
    first, *others = encoder.stages
    steps, channels = [triple(step) for step in encoder.strides], encoder.output_channels
    return [
        Stage((encoder.stem, first), channels[0], steps[0]),
        *(Stage((stage,), count, step) for stage, count, step in zip(others, channels[1:], steps[1:], strict=True)),
    ]


def plain_conv_unet_stages(network: Any) -> list[Stage]:
    """One level per stage of the encoder."""
    encoder = network.encoder
    steps = [triple(step) for step in encoder.strides]
    return [
        Stage((stage,), count, step)
        for stage, count, step in zip(encoder.stages, encoder.output_channels, steps, strict=True)
    ]


def nnunet_arguments(name: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """All arguments of one of nnU-Net's networks, with values that a json can hold.

    Args:
        name: of the network.
        arguments: those given; the others are as for `residual_encoder_unet`.
    """
    if name == "ResidualEncoderUNet" and "n_stages" not in arguments:
        arguments = {**RESENC_L, **arguments}
    given = {**_ALWAYS, **arguments}
    if "n_conv_per_stage_decoder" not in given and "n_stages" in given:
        given["n_conv_per_stage_decoder"] = [1] * (given["n_stages"] - 1)
    return given


def _build(name: str, arguments: Mapping[str, Any]) -> nn.Module:
    make, given = _architecture(name), nnunet_arguments(name, arguments)
    for key in _CLASSES:
        if isinstance(given.get(key), str):
            given[key] = _class_of_torch(key, given[key])
    network: nn.Module = make(**given)
    return network


def _architecture(name: str) -> Callable[..., nn.Module]:
    try:
        module = importlib.import_module("dynamic_network_architectures.architectures.unet")
    except ImportError as error:
        raise UserError(
            f"encoder {name} is nnU-Net's network, whose package is not installed: pip install "
            "dynamic-network-architectures, or install this package with the extra nnunet"
        ) from error
    found: Callable[..., nn.Module] = getattr(module, name)
    return found


def _class_of_torch(key: str, path: str) -> type[nn.Module]:
    """A class of torch.nn by the import path that a plan gives; nothing else is imported."""
    found = getattr(nn, path.rpartition(".")[2], None) if path.startswith("torch.nn.") else None
    if not (isinstance(found, type) and issubclass(found, nn.Module)):
        raise UserError(f"encoder#{key} {path!r} is no class of torch.nn: give one such as torch.nn.LeakyReLU")
    return found
