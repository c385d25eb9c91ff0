# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""Gradients: limited before each step of the optimizer, and kept above zero in float16."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from ignite.engine import Engine, Events
from monai.utils.enums import CommonKeys
from torch.optim import Optimizer

from bundle.errors import UserError

__all__ = ["ClipGradients", "ScaleLoss"]


class ClipGradients:
    """Scales the gradient of all parameters down to a norm of at most `max_norm`.

    It acts in a hook of the optimizer, so once per step, on the whole gradient, also where it is summed over several
    iterations. The norm before clipping joins the loss terms as "gradient_norm".

    A norm that is not finite ends the run: on a CPU before the weights change; on a GPU, which would have to wait for
    the host to look, at the latest after `interval` steps or at the end of the epoch. Put this handler before the
    checkpoint's: what is saved is then always finite.

    Args:
        optimizer: whose gradients.
        max_norm: the largest norm that a step may have.
        interval: number of steps between two looks at the norm on a GPU.

    Raises:
        UserError: during training, if the norm is not finite.
    """

    def __init__(self, *, optimizer: Optimizer, max_norm: float, interval: int = 50) -> None:
        self.optimizer, self.max_norm, self.interval = optimizer, max_norm, interval
        self._engine: Engine | None = None
        self._steps = 0
        self._all_finite: torch.Tensor | None = None

    def attach(self, engine: Engine) -> None:
        """Registers with the trainer and its optimizer."""
        self._engine = engine
        self.optimizer.register_step_pre_hook(self._before_step)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._check)

    def _before_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:  # noqa: ARG002 - torch's signature
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        norm = torch.nn.utils.clip_grad_norm_(parameters, self.max_norm)
        assert self._engine is not None
        pred = self._engine.state.output.get(CommonKeys.PRED)
        if isinstance(pred, Mapping):  # pre-training's; a segmentation network gives tensors
            pred["terms"]["gradient_norm"] = norm.detach()

        finite = torch.isfinite(norm)
        self._all_finite = finite if self._all_finite is None else self._all_finite & finite
        self._steps += 1
        if finite.device.type == "cpu" or self._steps % self.interval == 0:
            self._check(self._engine)

    def _check(self, engine: Engine) -> None:
        if self._all_finite is not None and not self._all_finite.item():
            raise UserError(
                f"the gradient is not finite in epoch {engine.state.epoch}, iteration {engine.state.iteration}: "
                "go on from the last checkpoint with --resume, or start again if there is none, with a lower --lr"
            )


class ScaleLoss:
    """Keeps float16 gradients above zero; without float16 it does nothing.

    It puts `torch.amp.GradScaler` into MONAI's trainer (Micikevicius et al. 2018, arXiv:1710.03740, section 3.2), which
    scales the loss before the backward pass, divides the gradients by the same number before the step, and skips a step
    whose gradients overflowed. It finds the number anew after a resume, at the price of a few skipped
    steps. The network autocasts by itself; losses are computed in float32.

    Args:
        autocast: the dtype of the network's autocast, None for float32.
        device: where it runs.

    Raises:
        UserError: at the end of an epoch, if the scale has sunk below 1: then no scale helps.
    """

    def __init__(self, *, autocast: torch.dtype | None, device: torch.device) -> None:
        self.autocast, self.device = autocast, device

    def attach(self, engine: Engine) -> None:
        """Registers with a MONAI `Trainer`."""
        if self.autocast is torch.float16:
            engine.add_event_handler(Events.STARTED, self._start)
            engine.add_event_handler(Events.EPOCH_COMPLETED, self._check)

    def _start(self, engine: Engine) -> None:
        # MONAI makes its own scaler when a run starts, for CUDA alone, and autocasts the loss as well
        engine.amp, engine.amp_kwargs = True, {"enabled": False}
        engine.scaler = torch.amp.GradScaler(self.device.type)
        # a fused optimizer would divide by the scale within its step: too late for `ClipGradients`, which acts before
        engine.optimizer._step_supports_amp_scaling = False  # noqa: SLF001 - there is no public way

    def _check(self, engine: Engine) -> None:
        if engine.scaler.get_scale() < 1:
            raise UserError(
                f"float16 gradients overflow whatever their scale in epoch {engine.state.epoch}: continue with "
                "--resume and --amp bfloat16 or --amp False, or a lower --lr"
            )
