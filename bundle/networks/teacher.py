# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""A teacher: the moving average of encoder, decoder and heads, which sees the whole volume and is never trained."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
        decoder: the student's, where heads need what the teacher's makes of the whole.

    Raises:
        UserError: if the momentum is not between 0 and 1.
    """

    def __init__(
        self,
        encoder: Encoder,
        heads: Mapping[str, nn.Module],
        momentum: float = 0.995,
        decoder: nn.Module | None = None,
    ) -> None:
        super().__init__()
        if not 0 <= momentum < 1:
            raise UserError(f"teacher_momentum {momentum} does not fit: give 0 to below 1, such as 0.995")
        self.average = AveragedModel(_student(encoder, heads, decoder))
        self._names, self._has_decoder = list(heads), decoder is not None
        self.momentum = momentum
        self.requires_grad_(False)

    @property
    def momentum(self) -> float:
        """Share of the average that a step keeps; a schedule may set it, up to 1."""
        return self._momentum

    @momentum.setter
    def momentum(self, value: float) -> None:
        self._momentum = value
        self.average.multi_avg_fn = get_ema_multi_avg_fn(value)

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

    @torch.no_grad()
    def decode_each(self, features: Sequence[Any]) -> list[Tensor]:
        """What the averaged decoder makes of `encode`'s features at each of its levels, finest first."""
        decoder: Any = self._averaged["decoder"]
        decoded: list[Tensor] = decoder.decode_each(features)
        return decoded

    def update(self, encoder: Encoder, heads: Mapping[str, nn.Module], decoder: nn.Module) -> None:
        """Moves the average towards the student: once after every step of the optimizer."""
        self.average.update_parameters(_student(encoder, heads, decoder if self._has_decoder else None))

    def restart(self, encoder: Encoder, heads: Mapping[str, nn.Module], decoder: nn.Module) -> None:
        """Makes the average a copy of the student, whose weights have been replaced."""
        student = _student(encoder, heads, decoder if self._has_decoder else None)
        self.average.module.load_state_dict(student.state_dict())

    def forward(self, *_: Tensor) -> None:
        """Not called: the network calls `encode`."""
        raise NotImplementedError


def _student(encoder: Encoder, heads: Mapping[str, nn.Module], decoder: nn.Module | None) -> nn.ModuleDict:
    halves: dict[str, nn.Module] = {"encoder": encoder} if decoder is None else {"encoder": encoder, "decoder": decoder}
    return nn.ModuleDict({**halves, **{_KEYS.get(name, name): module for name, module in heads.items()}})
