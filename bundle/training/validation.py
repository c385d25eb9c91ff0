# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""What validation needs beside MONAI's: the last epoch, the loss terms, and the same random choices every time."""

from __future__ import annotations

from contextlib import ExitStack

import torch
from ignite.engine import Engine, Events
from monai.engines import Evaluator, SupervisedEvaluator
from monai.utils.enums import CommonKeys

from bundle.networks import ObjectiveSum
from bundle.runs.distributed import broadcast_buffers, unwrap

__all__ = ["SameBuffers", "ValidateLastEpoch", "ValidationLoss"]


class SameBuffers:
    """Gives the network of every process the buffers of rank 0 when a validation starts.

    DDP does so before each forward in training, so after the last one BatchNorm's running statistics are each
    process's own. Every process would validate another network, and rank 0's alone would be saved.
    """

    def attach(self, engine: Engine) -> None:
        """Registers with the evaluator."""
        engine.add_event_handler(Events.STARTED, self)

    def __call__(self, engine: SupervisedEvaluator) -> None:
        """Copies them."""
        broadcast_buffers(unwrap(engine.network))


class ValidateLastEpoch:
    """Validates the last epoch, too, where MONAI's ValidationHandler does not, as its `interval` does not divide them.

    Otherwise the last weights, which are often the best, would never be looked at. Put it right behind that handler.

    Args:
        validator: that is run.
        interval: of the other handler, in epochs.
    """

    def __init__(self, *, validator: Evaluator, interval: int) -> None:
        self.validator, self.interval = validator, interval

    def attach(self, engine: Engine) -> None:
        """Registers with the trainer."""
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._validate)

    def _validate(self, engine: Engine) -> None:
        epoch = engine.state.epoch
        if epoch == engine.state.max_epochs and epoch % self.interval:
            self.validator.run(epoch)


class ValidationLoss:
    """Computes the loss of each validation batch, so that its terms can be logged as in training.

    Crops and masks are fixed by the numbers of their draws. What else is random, such as the sites that heads
    draw, is drawn from `seed` anew in every validation, and leaves the training's generators as they were. Objectives
    have their full weight, also while training still raises it: the lowest sum tells the best epoch.

    Put this handler before the one that collects the terms.

    Args:
        loss_function: as the trainer's.
        seed: of everything random in validation.
    """

    def __init__(self, *, loss_function: ObjectiveSum, seed: int = 0) -> None:
        self.loss_function, self.seed = loss_function, seed
        self._while_it_runs = ExitStack()

    def attach(self, engine: Engine) -> None:
        """Registers with the evaluator."""
        engine.add_event_handler(Events.EPOCH_STARTED, self._start)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._compute)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._finish)
        engine.add_event_handler(Events.EXCEPTION_RAISED, self._fail)

    def _start(self, engine: Engine) -> None:
        device = torch.device(engine.state.device)
        self._while_it_runs.enter_context(torch.random.fork_rng([device] if device.type == "cuda" else []))
        torch.manual_seed(self.seed)
        self._while_it_runs.enter_context(self.loss_function.without_warm_up())

    def _compute(self, engine: Engine) -> None:
        with torch.no_grad():
            self.loss_function(engine.state.output[CommonKeys.PRED], engine.state.output[CommonKeys.LABEL])

    def _finish(self, engine: Engine) -> None:  # noqa: ARG002 - the signature of a handler
        self._while_it_runs.close()

    def _fail(self, engine: Engine, error: BaseException) -> None:  # noqa: ARG002 - the signature of a handler
        self._while_it_runs.close()
        raise error
