# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""A short memory of keys, so that a small batch has negatives from many people."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

__all__ = ["BodyPlaces", "KeyQueue"]


class BodyPlaces(NamedTuple):
    """Where places lie in their volumes.

    Attributes:
        place: ``[N, 3]``, as a share of the volume on each axis, from 0 to 1.
        extent: ``[N, 3]``, of the whole volume in mm.
        volume: int64 ``[N]``, the number of the volume among all that are trained on; below 0 there is none.
    """

    place: Tensor
    extent: Tensor
    volume: Tensor


class KeyQueue(nn.Module):
    """The last keys and where they lie (MoCo, arXiv:1911.05722). It is a part of the checkpoint.

    Under several processes all have those of the first one, as DDP gives them its buffers before each step.

    Args:
        length: how many keys.
        dim: channels of a key.
    """

    keys: Tensor
    place: Tensor
    extent: Tensor
    volume: Tensor
    next: Tensor

    def __init__(self, length: int, dim: int) -> None:
        super().__init__()
        self.register_buffer("keys", torch.zeros(length, dim))
        self.register_buffer("place", torch.zeros(length, 3))
        self.register_buffer("extent", torch.ones(length, 3))
        self.register_buffer("volume", torch.full((length,), -1))
        self.register_buffer("next", torch.zeros((), dtype=torch.long))

    @property
    def bodies(self) -> BodyPlaces:
        """Where the keys lie."""
        return BodyPlaces(self.place, self.extent, self.volume)

    @torch.no_grad()
    def push(self, keys: Tensor, bodies: BodyPlaces) -> None:
        """Takes keys in, in the place of the oldest ones."""
        length = len(self.keys)
        rows = (keys[-length:], *(values[-length:] for values in bodies))
        slots = (self.next + torch.arange(len(rows[0]), device=self.next.device)) % length
        for memory, values in zip((self.keys, self.place, self.extent, self.volume), rows, strict=True):
            memory[slots] = values.to(memory)
        self.next.copy_((self.next + len(rows[0])) % length)

    def forward(self, *_: Tensor) -> None:
        """Not called: the loss reads `keys` and `bodies`."""
        raise NotImplementedError
