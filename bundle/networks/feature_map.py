# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""The network that is published: a dense encoder from image to coarsest features, in MONAI's own keys."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.fx import Graph, GraphModule

from bundle.cells import Triple
from bundle.errors import UserError
from bundle.networks.encoders import Encoder, build_encoder

__all__ = ["build_feature_map", "total_stride"]


def build_feature_map(encoder: Mapping[str, Any]) -> nn.Module:
    """The encoder half of a MONAI network as a network of its own: `image` to the features of its coarsest level.

    Its modules are the MONAI network's, under the same names, and nothing else: a `model.pt` loads strictly. Its
    forward is generated, one line per stage, so TorchScript compiles it wherever it compiles these modules.

    Args:
        encoder: the name and arguments that `build_encoder` takes, as `model.json` has them.

    Returns:
        A network from ``[B, 1, D, H, W]`` to ``[B, C, D / s0, H / s1, W / s2]``, with s the encoder's `total_stride`.

    Raises:
        UserError: if this names no encoder, or one that does not take these arguments.
    """
    built = _build(encoder)
    stages = [module for stage in built.stages for module in stage.modules]
    names = {module: name for name, module in built.network.named_modules()}
    graph = Graph()
    features = graph.placeholder("image")
    for module in stages:
        features = graph.call_module(names[module], (features,))
    graph.output(features)
    network = GraphModule(built.network, graph, class_name="FeatureMap")
    # one module may have two names, as in DynUNet: the file holds its weights under both
    present = {name for name, _ in network.named_modules(remove_duplicate=False)}
    for name, module in built.network.named_modules(remove_duplicate=False):
        if module in stages and name not in present:
            network.add_submodule(name, module)
    return network


def total_stride(encoder: Mapping[str, Any]) -> Triple:
    """Voxels on each axis of a cell, which is what one position of the feature map stands for.

    Args:
        encoder: as for `build_feature_map`.

    Raises:
        UserError: as there.
    """
    with torch.device("meta"):  # no memory, no random numbers
        return _build(encoder).total_stride


def _build(encoder: Mapping[str, Any]) -> Encoder:
    if not isinstance(encoder, Mapping) or not isinstance(encoder.get("name"), str):
        raise UserError(f"encoder {encoder} names no network: give its name, such as SegResEncoder, and its arguments")
    return build_encoder(**encoder)
