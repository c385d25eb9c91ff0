# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""What the alignment needs beside the loss: its weight let in gradually, and the teacher moved after every step."""

from __future__ import annotations

from typing import Any

from ignite.engine import Engine, Events
from torch import nn
from torch.optim import Optimizer

from bundle.losses import PretrainingLoss
from bundle.runs.distributed import unwrap

__all__ = ["AlignmentWarmUp", "UpdateTeacher"]


class AlignmentWarmUp:
    """Raises the alignment's weight from 0 to its own over the first steps: reconstruction settles first.

    Args:
        loss: whose weight.
        steps: number of iterations until the full weight; 0 starts with it.
    """

    def __init__(self, *, loss: PretrainingLoss, steps: int) -> None:
        self.loss, self.steps = loss, steps

    def attach(self, engine: Engine) -> None:
        """Registers with the trainer."""
        engine.add_event_handler(Events.ITERATION_STARTED, self._set)

    def _set(self, engine: Engine) -> None:
        self.loss.warm_up = min(1.0, engine.state.iteration / self.steps) if self.steps else 1.0


class UpdateTeacher:
    """Moves the network's teacher, if it has one, towards the encoder after every step of the optimizer.

    Args:
        network: the pre-training network, wrapped or not.
        optimizer: whose steps.
    """

    def __init__(self, *, network: nn.Module, optimizer: Optimizer) -> None:
        self.network, self.optimizer = unwrap(network), optimizer

    def attach(self, engine: Engine) -> None:  # noqa: ARG002 - the signature of a handler
        """Registers with the optimizer."""
        self.optimizer.register_step_post_hook(self._update)

    def _update(self, *_: Any) -> None:
        self.network.update_teacher()  # type: ignore[operator]  # a module's attribute, to mypy
