# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""A teacher: the moving average of encoder and alignment heads, which sees the whole volume and is never trained."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from bundle.errors import UserError
from bundle.networks.encoders import Encoder

__all__ = ["Teacher"]


class Teacher(nn.Module):
    """Exponential moving average of an encoder and of alignment heads (mean teacher, arXiv:1703.01780; BYOL).

    Args:
        encoder: the student.
        heads: the student's alignment heads.
        momentum: share of the average that a step keeps.

    Raises:
        UserError: if the momentum is not between 0 and 1.
    """

    def __init__(self, encoder: Encoder, heads: nn.Module, momentum: float = 0.995) -> None:
        super().__init__()
        if not 0 <= momentum < 1:
            raise UserError(f"teacher_momentum {momentum} does not fit: give 0 to below 1, such as 0.995")
        student = nn.ModuleDict({"encoder": encoder, "heads": heads})
        self.average = AveragedModel(student, multi_avg_fn=get_ema_multi_avg_fn(momentum))
        self.requires_grad_(False)

    @property
    def _averaged(self) -> nn.ModuleDict:
        return cast("nn.ModuleDict", self.average.module)

    @property
    def heads(self) -> Any:
        """The averaged alignment heads."""
        return self._averaged["heads"]

    @torch.no_grad()
    def encode(self, x: Any) -> list[Any]:
        """The averaged encoder's features, without gradient."""
        features: list[Any] = self._averaged["encoder"](x)
        return features

    def update(self, encoder: Encoder, heads: nn.Module) -> None:
        """Moves the average towards the student: once after every step of the optimizer."""
        self.average.update_parameters(nn.ModuleDict({"encoder": encoder, "heads": heads}))

    def forward(self, *_: Tensor) -> None:
        """Not called: the network calls `encode`."""
        raise NotImplementedError
