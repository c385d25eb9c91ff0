# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""Which parameters weight decay acts on."""

from __future__ import annotations

from typing import Any

from torch import nn

__all__ = ["parameter_groups"]


def parameter_groups(network: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Splits the trainable parameters into those that weight decay shrinks and those that it leaves alone.

    Left alone are biases and norm scales (one dimension) and tokens (a name whose last part contains "token"): decay
    would pull a norm's scale and a mask token towards 0, which says nothing about the complexity of the network.
    Parameters without `requires_grad`, such as a momentum teacher's, are in neither group.

    Args:
        network: the whole trainable network.
        weight_decay: for the first group.

    Returns:
        Parameter groups for a PyTorch optimizer.
    """
    decayed: list[nn.Parameter] = []
    free: list[nn.Parameter] = []
    for name, parameter in network.named_parameters():
        if parameter.requires_grad:
            is_token = "token" in name.rpartition(".")[2]
            (free if parameter.ndim <= 1 or is_token else decayed).append(parameter)
    groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": free, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]
