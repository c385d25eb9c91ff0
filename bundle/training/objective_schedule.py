# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""What objectives need beside the loss: a weight let in gradually, and the teacher moved after every step."""

from __future__ import annotations

from typing import Any

from ignite.engine import Engine, Events
from torch import nn
from torch.optim import Optimizer

from bundle.errors import UserError
from bundle.networks import ObjectiveSum
from bundle.runs.distributed import unwrap

__all__ = ["UpdateTeacher", "WarmUpObjective"]


class WarmUpObjective:
    """Raises an objective's weight from 0 to its full value over the first steps: reconstruction settles first.

    Args:
        loss: the trainer's.
        steps: number of iterations until the full weight; 0 starts with it.
        objective: its name.

    Raises:
        UserError: if the loss has no objective of that name.
    """

    def __init__(self, *, loss: ObjectiveSum, steps: int, objective: str) -> None:
        if objective not in loss.objectives:
            known = ", ".join(loss.objectives)
            raise UserError(f"WarmUpObjective: the loss has no objective {objective!r}: choose one of {known}")
        self.objective, self.steps = loss.objectives[objective], steps

    def attach(self, engine: Engine) -> None:
        """Registers with the trainer."""
        engine.add_event_handler(Events.ITERATION_STARTED, self._set)

    def _set(self, engine: Engine) -> None:
        self.objective.warm_up = min(1.0, engine.state.iteration / self.steps) if self.steps else 1.0


class UpdateTeacher:
    """Moves the network's teacher, if it has one, towards the encoder and its heads after every step of the optimizer.

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
