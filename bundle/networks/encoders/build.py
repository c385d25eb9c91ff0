# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""Encoders by the name a config gives."""

from __future__ import annotations

import difflib
import logging
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from monai.networks import nets
from torch import nn

from bundle.errors import UserError
from bundle.networks.encoders.densenet import densenet_stages
from bundle.networks.encoders.efficientnet import efficientnet_stages
from bundle.networks.encoders.encoder import Encoder, Stage
from bundle.networks.encoders.nnunet import (
    plain_conv_unet,
    plain_conv_unet_stages,
    residual_encoder_unet,
    residual_unet_stages,
)
from bundle.networks.encoders.resnet import resnet_stages, senet_stages
from bundle.networks.encoders.segresnet import segres_encoder_stages, segresnet_ds_stages, segresnet_stages
from bundle.networks.encoders.unet import basic_unet_stages, dynunet_stages, mednext_stages, vnet_stages
from bundle.networks.encoders.users_encoder import check_levels, find_maker
from bundle.weights import ModelFiles

__all__ = ["ENCODERS", "Family", "build_encoder"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Family:
    """How an encoder is built.

    Attributes:
        network: the MONAI network.
        stages: where its levels are.
        defaults: arguments that a config need not give; one that is there and differs has its way.
    """

    network: Callable[..., nn.Module]
    stages: Callable[[Any], list[Stage]]
    defaults: Mapping[str, Any] = field(default_factory=dict)


_CT = {"spatial_dims": 3, "in_channels": 1}
_SEGMENTATION = {**_CT, "out_channels": 2}
_BACKBONE = {**_CT, "pretrained": False}  # MONAI's own default fetches weights

#: what networks call the number of images in a volume
_IMAGES = ("in_channels", "n_input_channels", "input_channels")

#: encoders by their MONAI, or nnU-Net's, names; each takes that network's own arguments
ENCODERS: dict[str, Family] = {
    "SegResEncoder": Family(nets.segresnet_ds.SegResEncoder, segres_encoder_stages),
    "SegResNetDS": Family(nets.SegResNetDS, segresnet_ds_stages),
    "SegResNet": Family(nets.SegResNet, segresnet_stages),
    "ResNet": Family(nets.ResNet, resnet_stages, {"n_input_channels": 1, "feed_forward": False}),
    "ResNetFeatures": Family(nets.ResNetFeatures, resnet_stages, {"pretrained": False}),
    "SENet": Family(nets.SENet, senet_stages, _CT),
    "SEResNet50": Family(nets.SEResNet50, senet_stages, _CT),
    "DenseNet": Family(nets.DenseNet, densenet_stages, _SEGMENTATION),
    "DenseNet121": Family(nets.DenseNet121, densenet_stages, _SEGMENTATION),
    "EfficientNet": Family(nets.EfficientNet, efficientnet_stages, _CT),
    "EfficientNetBN": Family(nets.EfficientNetBN, efficientnet_stages, _BACKBONE),
    "EfficientNetBNFeatures": Family(nets.EfficientNetBNFeatures, efficientnet_stages, _BACKBONE),
    "DynUNet": Family(nets.DynUNet, dynunet_stages, _SEGMENTATION),
    "MedNeXt": Family(nets.MedNeXt, mednext_stages),
    "VNet": Family(nets.VNet, vnet_stages),
    "BasicUNet": Family(nets.BasicUNet, basic_unet_stages),
    "ResidualEncoderUNet": Family(residual_encoder_unet, residual_unet_stages),
    "PlainConvUNet": Family(plain_conv_unet, plain_conv_unet_stages),
}


def build_encoder(name: str, *, init_from: str | os.PathLike[str] | None = None, **arguments: Any) -> Encoder:
    """Builds an encoder by its MONAI name with that network's own arguments, or one of a user's file.

    For a network that is not in `ENCODERS`, `name` is the dotted name of a function, such as "my_file.my_encoder". It
    takes `arguments`, and returns ``Encoder(network, stages)``. The name and arguments go into `model.json`, so that
    whoever loads the weights builds the same network; the file has to be importable there, too.

    Args:
        name: of a network in `ENCODERS`, or of a function.
        init_from: weights that training will go on from; where these say what their encoder is, by a `model.json`
            beside them or by the layout of known published weights, that one is built instead, but for the number of
            images in a volume. The weights are not loaded here.
        **arguments: of that network, or function.

    Raises:
        UserError: for an unknown name, an argument the network does not take, or a function that makes no encoder.

    Example:
        >>> from bundle.networks import build_encoder
        >>> encoder = build_encoder("SegResEncoder", init_filters=8, blocks_down=[1, 2, 2])
        >>> [(level.channels, level.stride) for level in encoder.levels]
        [(8, (1, 1, 1)), (16, (2, 2, 2)), (32, (4, 4, 4))]
        >>> import torch
        >>> [list(features.shape) for features in encoder(torch.zeros(1, 1, 16, 16, 16))]
        [[1, 8, 16, 16, 16], [1, 16, 8, 8, 8], [1, 32, 4, 4, 4]]
    """
    if init_from is not None:
        name, arguments = _described(init_from, name, arguments)
    if "." in name:
        encoder = check_levels(_call(name, find_maker(name), arguments), name)
    elif name in ENCODERS:
        family = ENCODERS[name]
        arguments = {**family.defaults, **arguments}
        network = _call(name, family.network, arguments)
        encoder = Encoder(network, family.stages(network))
    else:
        near = difflib.get_close_matches(name, ENCODERS, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"choose one of {', '.join(ENCODERS)}, or my_file.my_function"
        raise UserError(f"unknown encoder {name!r} in encoder#name: {hint}")
    encoder.settings = {"name": name, **arguments}
    return encoder


def _described(weights: str | os.PathLike[str], name: str, arguments: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """Name and arguments of the encoder that weights belong to, or those given where the weights do not say."""
    described = ModelFiles(weights).describe()
    if described is None or not described.encoder:
        return name, arguments
    settings = dict(described.encoder)
    # the volumes say how many images they have, and `load_start` adapts the weights to it
    images = next((arguments[key] for key in _IMAGES if key in arguments), 1)
    settings.update({key: images for key in _IMAGES if key in settings})
    if settings != {"name": name, **arguments}:
        logger.info("the encoder is that of --init_from %s: %s", weights, settings)
    return settings.pop("name"), settings


def _call(name: str, make: Callable[..., Any], arguments: Mapping[str, Any]) -> Any:
    try:
        return make(**arguments)
    except TypeError as error:
        raise UserError(
            f"encoder {name} does not take its arguments: {error}; correct `encoder` in the config"
        ) from error
