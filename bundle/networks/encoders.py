# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""Encoders: unmodified MONAI networks behind one contract, the facts of their levels and the list of their features."""

from __future__ import annotations

import difflib
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from monai.networks.nets.segresnet_ds import SegResEncoder
from torch import Tensor, nn

from bundle.errors import UserError
from bundle.sparse import SparseVolume

__all__ = ["ENCODERS", "Encoder", "Level", "build_encoder"]

Triple = tuple[int, int, int]


@dataclass(frozen=True)
class Level:
    """One level of an encoder: its channels, and the voxels per site on each axis."""

    channels: int
    stride: Triple


class Encoder(nn.Module, ABC):
    """A MONAI network as a pre-training encoder. Subclasses only say where its levels are.

    Attributes:
        network: the MONAI network itself; its `state_dict` is what a pre-training run hands on.
        levels: what `forward` returns, finest first.
        settings: the name and arguments that `build_encoder` was given.
    """

    network: nn.Module
    settings: dict[str, Any]

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.levels: list[Level] = self._levels()

    @property
    def total_stride(self) -> Triple:
        """Voxels of a cell on each axis."""
        return self.levels[-1].stride

    @abstractmethod
    def _levels(self) -> list[Level]: ...

    @abstractmethod
    def forward(self, x: Tensor | SparseVolume) -> list[Any]:
        """Features of every level, finest first, as sparse or dense as `x`."""


class _SegRes(Encoder):
    network: SegResEncoder

    def _levels(self) -> list[Level]:
        levels, stride = [], (1, 1, 1)
        for depth, layer in enumerate(self.network.layers):
            levels.append(Level(self.network.init_filters * 2**depth, stride))
            step = getattr(layer["downsample"], "stride", (1, 1, 1))  # type: ignore[index]  # a ModuleDict
            stride = _multiply(stride, step)
        return levels

    def forward(self, x: Tensor | SparseVolume) -> list[Any]:
        return self.network(x)  # type: ignore[no-any-return]


def _segres_encoder(**arguments: Any) -> Encoder:
    return _SegRes(SegResEncoder(**arguments))


#: encoders by the name a config gives; each takes the MONAI network's own arguments
ENCODERS: dict[str, Callable[..., Encoder]] = {"SegResEncoder": _segres_encoder}


def build_encoder(name: str, **arguments: Any) -> Encoder:
    """Builds an encoder by its MONAI name with that network's own arguments.

    Raises:
        UserError: for an unknown name or an argument the network does not take.
    """
    if name not in ENCODERS:
        near = difflib.get_close_matches(name, ENCODERS, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"choose one of {', '.join(ENCODERS)}"
        raise UserError(f"unknown encoder {name!r} in encoder#name: {hint}")
    try:
        encoder = ENCODERS[name](**arguments)
    except TypeError as error:
        raise UserError(
            f"encoder {name} does not take its arguments: {error}; correct `encoder` in the config"
        ) from error
    encoder.settings = {"name": name, **arguments}
    return encoder


def _multiply(a: Sequence[int], b: Sequence[int]) -> Triple:
    x, y, z = (i * j for i, j in zip(a, b))
    return x, y, z
