# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""What the optimizer and its schedule are made with: which parameters decay, and how many steps there are."""

from __future__ import annotations

import logging
from collections.abc import Sized
from typing import Any

from monai.optimizers import WarmupCosineSchedule
from torch import nn
from torch.optim import Optimizer

__all__ = ["parameter_groups", "training_steps", "warmup_cosine", "warmup_steps"]

logger = logging.getLogger(__name__)


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


def training_steps(loader: Sized, epochs: float) -> int:
    """The number of iterations in `epochs` epochs (0.5 is half of one), at least 1.

    With `LrScheduleHandler(epoch_level=False)` the schedule moves once per iteration, so gradient accumulation does not
    change this number.
    """
    return max(1, round(len(loader) * epochs))


def warmup_steps(loader: Sized, epochs: float, total_epochs: float) -> int:
    """The number of iterations in `epochs` epochs, at most half of those in `total_epochs`, and at least 1.

    A short run, such as a first look with ``--epochs 2``, would else end before its learning rate is reached.
    """
    if epochs <= total_epochs / 2:
        return training_steps(loader, epochs)
    logger.warning(
        "warmup_epochs is %g of %g epochs: warms up for half of them, so that the learning rate is reached",
        epochs,
        total_epochs,
    )
    return training_steps(loader, total_epochs / 2)


def warmup_cosine(
    optimizer: Optimizer,
    *,
    loader: Sized,
    epochs: float,
    warmup_epochs: float,
    warmup_multiplier: float = 0.01,
    end_lr: float = 0.0,
) -> WarmupCosineSchedule:
    """A schedule that moves once per step: up a line to the learning rate, then down a cosine.

    Args:
        optimizer: whose learning rate.
        loader: of the training; its length is the number of steps in an epoch.
        epochs: of the whole training.
        warmup_epochs: of them, to warm up; at most half of them are.
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
