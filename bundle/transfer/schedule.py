# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""Learning rates over a fine-tuning: what moves when."""

from __future__ import annotations

import math
from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from bundle.errors import UserError
from bundle.transfer.transfer import SCHEDULES

__all__ = ["FineTuneSchedule"]


class FineTuneSchedule(LRScheduler):
    """Moves once per step, from 0 up to each group's own learning rate and down to 0 along a cosine.

    - full: all parameters warm up together. Without a warm-up the untrained decoder's first gradients undo what the
      encoder has learned (-1 to -2 points of Dice in Wald et al., arXiv:2410.23132).
    - sawtooth: for the first `decoder_share` of the steps the rate of what is pre-trained, encoder or encoder and
      decoder, is 0 and only new layers learn; then all warm up anew and go down together (nnssl's best schedule for
      CNNs, OpenMind, arXiv:2412.17041).
    - frozen: the encoder's rate is 0 throughout: a probe of its features.

    Args:
        optimizer: with groups from `layer_wise_groups`.
        kind: "full", "sawtooth" or "frozen".
        t_total: steps in all.
        warmup_steps: of them, to warm up.
        decoder_share: share of the steps for the new layers alone, with sawtooth.
    """

    def __init__(
        self, optimizer: Optimizer, *, kind: str = "full", t_total: int, warmup_steps: int, decoder_share: float = 0.25
    ) -> None:
        if kind not in SCHEDULES:
            raise UserError(f"--schedule {kind!r} is not known: choose one of {', '.join(SCHEDULES)}")
        if not 0 < decoder_share < 1:
            raise UserError(f"--decoder_share {decoder_share} does not fit: give a share of the steps such as 0.25")
        self.kind, self.t_total, self.warmup_steps, self.decoder_share = kind, t_total, warmup_steps, decoder_share
        super().__init__(optimizer)

    def get_lr(self) -> list[float | Any]:
        """The learning rate of each group at this step."""
        waiting = ("encoder", "decoder") if self.kind == "sawtooth" else ("encoder",)
        return [
            base * self.factor(self.last_epoch, encoder=group.get("part") in waiting)
            for base, group in zip(self.base_lrs, self.optimizer.param_groups, strict=True)
        ]

    def factor(self, step: int, *, encoder: bool) -> float:
        """What the learning rates are multiplied by at a step, counted from 0.

        Args:
            step: counted from 0.
            encoder: of the encoder's parameters, and in a sawtooth of a pre-trained decoder's, else of the others.
        """
        if encoder and self.kind == "frozen":
            return 0.0
        if self.kind != "sawtooth":
            return _ramp(step, self.t_total, self.warmup_steps)
        alone = round(self.t_total * self.decoder_share)
        if step < alone:
            return 0.0 if encoder else min(1.0, (step + 1) / max(1, min(self.warmup_steps, alone)))
        return _ramp(step - alone, self.t_total - alone, self.warmup_steps)


def _ramp(step: int, total: int, warmup: int) -> float:
    """Up from 1/warmup to 1 in `warmup` steps, then a half cosine down to 0 at `total`."""
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * min(1.0, (step - warmup) / max(1, total - warmup))))
