# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""The pre-trained encoder as a plain PyTorch module, made from `model.pt` and the `model.json` beside it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from bundle.errors import UserError
from bundle.export.private import without_private
from bundle.networks import Encoder, build_encoder
from bundle.weights import ModelFiles, read_weights, require_fractions

__all__ = ["PlainEncoder", "PlainModel", "plain_model", "plain_network"]


class PlainEncoder(nn.Module):
    """The encoder half of a MONAI network: image in, features of every level out. Dense tensors only.

    It holds the modules of the network that the encoder uses, not copies, and not the decoder half or the classifier;
    its forward is one loop, so that TorchScript, torch.export and ONNX take it where they take MONAI's own modules.

    Args:
        encoder: whose stages to run.

    Attributes:
        channels: of each level, finest first.
        strides: voxels per site on each axis, of each level.
        in_channels: of the image.
    """

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        self.stages = nn.ModuleList(nn.Sequential(*stage.modules) for stage in encoder.stages)
        self.channels = [level.channels for level in encoder.levels]
        self.strides = [level.stride for level in encoder.levels]
        # the first convolution reads the image
        self.in_channels = next((int(weight.shape[1]) for weight in self.parameters() if weight.ndim == 5), 1)

    def forward(self, image: Tensor) -> list[Tensor]:
        """Features of every level, finest first.

        Args:
            image: float32 ``[B, C, D, H, W]``, prepared as in pre-training; each size a multiple of the last stride.
        """
        features: list[Tensor] = []
        for stage in self.stages:
            image = stage(image)
            features.append(image)
        return features


@dataclass(frozen=True)
class PlainModel:
    """A pre-trained encoder, loaded.

    Attributes:
        network: in eval mode.
        weights: the flat state dict, by the MONAI network's own keys.
        settings: of `model.json`, without what is private.
        decoder: the flat state dict of the pre-trained decoder; empty where none was kept.
    """

    network: PlainEncoder
    weights: dict[str, Tensor]
    settings: dict[str, Any]
    decoder: dict[str, Tensor] = field(default_factory=dict)


def plain_model(model: str | os.PathLike[str]) -> PlainModel:
    """Loads a pre-trained encoder.

    Args:
        model: the `model.pt` of a run, with its `model.json` in the same folder.

    Raises:
        UserError: if one of the two is missing or damaged, or they do not belong together.
    """
    files = ModelFiles(model)
    weights, settings = files.read_weights(), files.read_settings()
    if settings is None:
        raise UserError(
            f"{files.settings} does not exist: copy it from the run folder too, it says how to build the network"
        )
    content = without_private(settings.content)
    files.verify_decoder()
    decoder = read_weights(files.decoder) if files.decoder.is_file() else {}
    return PlainModel(plain_network(content, weights, name=str(files.weights)), weights, content, decoder)


def plain_network(
    settings: Mapping[str, Any], weights: Mapping[str, Tensor], *, name: str = "the weights"
) -> PlainEncoder:
    """Builds the encoder that `settings` describe, with exactly these weights, in eval mode.

    Args:
        settings: of `model.json`; `encoder` holds the name and arguments for `build_encoder`.
        weights: one tensor for each of the encoder's.
        name: of the weights in an error.

    Raises:
        UserError: if the settings describe no encoder, or a tensor is missing, left over or of another shape.
    """
    if settings.get("task"):
        remedy = "export the run that it was fine-tuned from"
        if settings["task"] == "segmentation":
            remedy = "scripts/export_bundle.py exports it"
        raise UserError(f"{name} is of a model fine-tuned for {settings['task']}, no encoder: {remedy}")
    about = settings.get("encoder")
    if not isinstance(about, Mapping) or "name" not in about:
        raise UserError(f"the settings of {name} name no encoder: give the model.json that pre-training wrote with it")
    encoder = build_encoder(**about)
    current = {key: tuple(value.shape) for key, value in encoder.network_state_dict().items()}
    given = {key: tuple(value.shape) for key, value in weights.items()}
    if wrong := sorted(key for key in current.keys() | given.keys() if current.get(key) != given.get(key)):
        raise UserError(
            f"{name}: {len(wrong)} tensors do not fit {about['name']} with the arguments in model.json, such as "
            f"{wrong[0]} (file: {given.get(wrong[0], 'none')}, network: {current.get(wrong[0], 'none')}): use the "
            "model.json that was written with these weights"
        )
    whole = encoder.network.state_dict()
    require_fractions(weights, whole, name)
    encoder.network.load_state_dict(whole | dict(weights))
    return PlainEncoder(encoder).eval()
