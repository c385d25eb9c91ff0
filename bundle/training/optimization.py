# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""What the optimizer and its schedule are made with: which parameters decay, and how the rate moves."""

from __future__ import annotations

from collections.abc import Sized
from typing import Any

from monai.optimizers import WarmupCosineSchedule
from torch import nn
from torch.optim import Optimizer

from bundle.runs.steps import training_steps, warmup_steps

__all__ = ["parameter_groups", "warmup_cosine"]


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


def warmup_cosine(
    optimizer: Optimizer,
    *,
    loader: Sized,
    epochs: float,
    warmup_epochs: float | None,
    warmup_multiplier: float = 0.01,
    end_lr: float = 0.0,
) -> WarmupCosineSchedule:
    """A schedule that moves once per step: up a line to the learning rate, then down a cosine.

    Args:
        optimizer: whose learning rate.
        loader: of the training; its length is the number of steps in an epoch.
        epochs: of the whole training.
        warmup_epochs: of them, to warm up; at most half of them are. None is a tenth of them, and at most 5.
        warmup_multiplier: the share of the learning rate that the first step has.
        end_lr: the learning rate after the last step.
    """
    return WarmupCosineSchedule(
        optimizer,
        warmup_steps=warmup_steps(loader, warmup_epochs, epochs),
        t_total=training_steps(loader, epochs),
        warmup_multiplier=warmup_multiplier,
        end_lr=end_lr,
    )
