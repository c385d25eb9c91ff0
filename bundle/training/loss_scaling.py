# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""Scales the loss where the network computes in float16."""

from __future__ import annotations

import torch
from ignite.engine import Engine, Events

from bundle.errors import UserError

__all__ = ["ScaleLoss"]


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

    def _check(self, engine: Engine) -> None:
        if engine.scaler.get_scale() < 1:
            raise UserError(
                f"float16 gradients overflow whatever their scale in epoch {engine.state.epoch}: continue with "
                "--resume and --amp bfloat16 or --amp False, or a lower --lr"
            )
