# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""Rules for joining, splitting and repeating channels."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from bundle.sparse.rules.pointwise import dense_beside, require_same_level
from bundle.sparse.unsupported import UnsupportedOperation
from bundle.sparse.volume import SparseVolume, rule


def _require_channel_axis(name: str, dim: int) -> None:
    if dim not in (1, -4):
        raise UnsupportedOperation(f"{name} of a sparse volume along axis {dim}: only along the channels, axis 1")


@rule(torch.cat, torch.concat, torch.concatenate)
def _cat(tensors: Sequence[SparseVolume | Tensor], dim: int = 0) -> SparseVolume:
    _require_channel_axis("torch.cat", dim)
    volume = next(t for t in tensors if isinstance(t, SparseVolume))
    parts = [t if isinstance(t, SparseVolume) else dense_beside(volume, t) for t in tensors]
    for part in parts:
        require_same_level(volume, part)
    return parts[0].pointwise(lambda *features: torch.cat(features, dim=1), *parts[1:])


@rule(torch.chunk, Tensor.chunk)
def _chunk(volume: SparseVolume, chunks: int, dim: int = 0) -> tuple[SparseVolume, ...]:
    return _split(volume, -(-volume.channels // chunks), dim)


@rule(torch.split, Tensor.split)
def _split(volume: SparseVolume, split_size: int | Sequence[int], dim: int = 0) -> tuple[SparseVolume, ...]:
    _require_channel_axis("torch.split", dim)
    parts = -(-volume.channels // split_size) if isinstance(split_size, int) else len(split_size)
    return tuple(volume.pointwise(partial(_part, split_size=split_size, index=i)) for i in range(parts))


def _part(features: Tensor, *, split_size: int | Sequence[int], index: int) -> Tensor:
    return features.split(split_size, dim=1)[index]


@rule(Tensor.repeat)
def _repeat(volume: SparseVolume, *repeats: Any) -> SparseVolume:
    b, times, d, h, w = repeats[0] if len(repeats) == 1 else repeats
    if (b, d, h, w) != (1, 1, 1, 1):
        raise UnsupportedOperation(f"repeat {(b, times, d, h, w)} of a sparse volume: only its channels can repeat")
    return volume.pointwise(lambda features: torch.cat([features] * times, dim=1))
