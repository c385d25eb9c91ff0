# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""What self-distillation needs beside its loss: a teacher that changes over the run, and a warning of collapse."""

from __future__ import annotations

import logging
import math
from typing import Any, cast

from ignite.engine import Engine, Events
from torch import nn

from bundle.errors import UserError
from bundle.networks import ObjectiveSum, Teacher
from bundle.runs.distributed import is_main_rank, unwrap

__all__ = ["CollapseWarning", "TeacherMomentum", "TeacherTemperature"]

logger = logging.getLogger(__name__)


class TeacherMomentum:
    """Raises the teacher's momentum over the run, along a cosine, so that it comes to rest (BYOL, arXiv:2006.07733).

    The momentum is a function of the iteration alone, so a resumed run goes on with the same one.

    Args:
        network: the pre-training network, wrapped or not.
        steps: iterations of the run.
        last: the momentum after them.

    Raises:
        UserError: if the network has no teacher, or `last` is below its momentum or above 1.
    """

    def __init__(self, *, network: nn.Module, steps: int, last: float = 1.0) -> None:
        teacher = cast("Teacher | None", unwrap(network).teacher)
        if teacher is None:
            raise UserError("TeacherMomentum: the network has no teacher: set network_def#teacher_momentum")
        if not teacher.momentum <= last <= 1:
            raise UserError(
                f"TeacherMomentum from {teacher.momentum} to {last} does not fit: give a last one between "
                "network_def#teacher_momentum and 1"
            )
        self.teacher, self.first, self.last, self.steps = teacher, teacher.momentum, last, steps

    def attach(self, engine: Engine) -> None:
        """Registers with the trainer."""
        engine.add_event_handler(Events.ITERATION_STARTED, self._set)

    def _set(self, engine: Engine) -> None:
        share = min(1.0, (engine.state.iteration - 1) / max(1, self.steps))
        self.teacher.momentum = self.last - (self.last - self.first) * (1 + math.cos(math.pi * share)) / 2


class TeacherTemperature:
    """Raises the temperature of a distillation's targets along a line to the one that the config gives.

    Sharp targets in the first steps keep a network that knows nothing yet from uniform ones (DINO, arXiv:2104.14294).

    Args:
        loss: the trainer's.
        first: the temperature of the first iteration.
        steps: iterations until the temperature of the config; 0 begins with it.
        objective: its name.

    Raises:
        UserError: if the loss has no such objective, or the temperature is not above 0.
    """

    def __init__(self, *, loss: ObjectiveSum, first: float, steps: int, objective: str = "distillation") -> None:
        found: Any = loss.objectives.get(objective)
        if not hasattr(found, "teacher_temperature"):
            raise UserError(f"TeacherTemperature: the loss has no distillation {objective!r}: give its name")
        if first <= 0:
            raise UserError(f"TeacherTemperature: first {first} does not fit: give a temperature above 0")
        self.objective, self.first, self.last, self.steps = found, first, found.teacher_temperature, steps

    def attach(self, engine: Engine) -> None:
        """Registers with the trainer."""
        engine.add_event_handler(Events.ITERATION_STARTED, self._set)

    def _set(self, engine: Engine) -> None:
        share = min(1.0, (engine.state.iteration - 1) / self.steps) if self.steps else 1.0
        self.objective.teacher_temperature = self.first + share * (self.last - self.first)


class CollapseWarning:
    """Warns in plain words after an epoch in which the targets of a distillation said next to nothing.

    Put it after the handler that collects the loss terms.

    Args:
        least: of `distillation_information`, the share of what a target could say of a place.
    """

    def __init__(self, *, least: float = 0.05) -> None:
        self.least = least

    def attach(self, engine: Engine) -> None:
        """Registers with the trainer."""
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._warn)

    def _warn(self, engine: Engine) -> None:
        metrics = engine.state.metrics
        if not is_main_rank() or metrics.get("train/distillation_information", 1.0) >= self.least:
            return
        used, entropy = metrics["train/distillation_used"], metrics["train/distillation_entropy"]
        if entropy > 1 - self.least:
            what = f"the targets stay uniform (entropy {entropy:.2f} of 1): lower teacher_temperature"
        else:
            what = f"{used:.1f} prototypes are in use: raise teacher_temperature, or set balance to sinkhorn"
        logger.warning("the distillation collapses, and teaches nothing: %s, or the learning rate", what)
