# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""A teacher: the moving average of encoder and heads, which sees the whole volume and is never trained."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from bundle.errors import UserError
from bundle.networks.encoders import Encoder

__all__ = ["Teacher"]

#: names in the state dict that are not the objective's
_KEYS = {"alignment": "heads"}


class Teacher(nn.Module):
    """Exponential moving average of an encoder and of objectives' heads (mean teacher, arXiv:1703.01780; BYOL).

    Args:
        encoder: the student.
        heads: the student's heads, by the names of their objectives.
        momentum: share of the average that a step keeps.

    Raises:
        UserError: if the momentum is not between 0 and 1.
    """

    def __init__(self, encoder: Encoder, heads: Mapping[str, nn.Module], momentum: float = 0.995) -> None:
        super().__init__()
        if not 0 <= momentum < 1:
            raise UserError(f"teacher_momentum {momentum} does not fit: give 0 to below 1, such as 0.995")
        self.average = AveragedModel(_student(encoder, heads), multi_avg_fn=get_ema_multi_avg_fn(momentum))
        self._names = list(heads)
        self.requires_grad_(False)

    @property
    def _averaged(self) -> nn.ModuleDict:
        return cast("nn.ModuleDict", self.average.module)

    @property
    def heads(self) -> dict[str, nn.Module]:
        """The averaged heads, by the names of their objectives."""
        return {name: self._averaged[_KEYS.get(name, name)] for name in self._names}

    @torch.no_grad()
    def encode(self, x: Any) -> list[Any]:
        """The averaged encoder's features, without gradient."""
        features: list[Any] = self._averaged["encoder"](x)
        return features

    def update(self, encoder: Encoder, heads: Mapping[str, nn.Module]) -> None:
        """Moves the average towards the student: once after every step of the optimizer."""
        self.average.update_parameters(_student(encoder, heads))

    def restart(self, encoder: Encoder, heads: Mapping[str, nn.Module]) -> None:
        """Makes the average a copy of the student, whose weights have been replaced."""
        self.average.module.load_state_dict(_student(encoder, heads).state_dict())

    def forward(self, *_: Tensor) -> None:
        """Not called: the network calls `encode`."""
        raise NotImplementedError


def _student(encoder: Encoder, heads: Mapping[str, nn.Module]) -> nn.ModuleDict:
    return nn.ModuleDict({"encoder": encoder, **{_KEYS.get(name, name): module for name, module in heads.items()}})
