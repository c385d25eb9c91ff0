# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""Running statistics of BatchNorm on whole images, where pre-training saw visible voxels only."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

__all__ = ["reestimate_batch_norm"]


@torch.no_grad()
def reestimate_batch_norm(network: nn.Module, images: Iterable[Tensor]) -> int:
    """Replaces the running mean and variance of every BatchNorm by the plain average over some batches.

    In pre-training they were collected over visible voxels, a part of each image, so a dense network would normalise
    with the wrong numbers. All else in the network stays as in evaluation; weights are not touched.

    Args:
        network: with or without BatchNorm; it is left in the mode it was in.
        images: batches ``[B, C, D, H, W]`` on the network's device, of whole, unmasked crops.

    Returns:
        The number of BatchNorm layers; with 0 no batch is drawn.
    """
    layers = [module for module in network.modules() if isinstance(module, _BatchNorm) and module.track_running_stats]
    if not layers:
        return 0
    modes = [(module, module.training) for module in network.modules()]
    momenta = [layer.momentum for layer in layers]
    network.eval()
    # in a hook, the last one of each layer: another may keep the layer of a frozen encoder in evaluation
    hooks = [layer.register_forward_pre_hook(_train) for layer in layers]
    try:
        for layer in layers:
            layer.reset_running_stats()
            layer.momentum = None  # torch then keeps the plain average
        for image in images:
            network(image)
    finally:
        for hook in hooks:
            hook.remove()
        for layer, momentum in zip(layers, momenta, strict=True):
            layer.momentum = momentum
        for module, mode in modes:
            module.training = mode
    return len(layers)


def _train(module: nn.Module, inputs: tuple[Any, ...]) -> None:  # noqa: ARG001 - the signature of a hook
    module.train()
