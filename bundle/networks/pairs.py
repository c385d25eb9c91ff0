# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""The views of a volume that heads are called with, and the pairs that an alignment loss compares."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor, nn

from bundle.errors import UserError
from bundle.networks.key_queue import KeyQueue
from bundle.sparse import SparseVolume

__all__ = ["Children", "Pairs", "View", "find_pairs", "make_head"]


@dataclass
class Pairs:
    """Features that should agree: row i of `query` and row i of `key` show the same place.

    Attributes:
        query: ``[N, C]``.
        key: ``[N, C]``; detached if a teacher made it.
        volume: int64 ``[N]``, the sample in the batch that the place lies in.
        position: ``[N, 3]``, the place's centre in mm from the crop's corner.
        queue: keys of earlier batches, for a loss that takes negatives from them.
    """

    query: Tensor
    key: Tensor
    volume: Tensor
    position: Tensor
    queue: KeyQueue | None = None


@dataclass
class View:
    """One level of volumes as the encoder sees them.

    Attributes:
        features: the encoder's on what is visible, finest first.
        full: the teacher's on all that has data, finest first; None without a teacher, or where no heads ask for it.
        spacing: ``[N, 3]``, voxel size in mm.
        volume: int64 ``[N]``, the sample in the batch that each row was cut from.
        origin: ``[N, 3]``, the first corner in mm from that sample's.
        parent: int64 ``[N]``, the row of the level before that each was cut from; None for the crops themselves.
        decoded: ``[N, C, d, h, w]``, the decoder's last features, of hidden places as well, on its finest grid; None
            before the decoder has run.
        decodings: what the decoder made at each of its levels, finest first; the first one is `decoded`. Empty where
            no heads ask for it.
        full_decodings: the same by the teacher, of all that has data; None where no heads ask for it, and of children.
    """

    features: Sequence[SparseVolume]
    full: Sequence[SparseVolume] | None
    spacing: Tensor
    volume: Tensor
    origin: Tensor
    parent: Tensor | None = None
    decoded: Tensor | None = None
    decodings: Sequence[Tensor] = ()
    full_decodings: Sequence[Tensor] | None = None


class Children(Protocol):
    """What the network reads of one level of children; `bundle.masking.LevelBatch` has it.

    Attributes:
        image: ``[N, C, D, H, W]``.
        visible: bool ``[N, 1, d, h, w]`` on cells.
        hidden: bool ``[N, 1, d, h, w]`` on cells.
        spacing: ``[N, 3]``, voxel size in mm.
        parent: int64 ``[N]``, the row of the level before that a child was cut from.
        corner: ``[N, 3]``, the child's first corner in voxels of that parent, not always whole ones.
    """

    image: Tensor
    visible: Tensor
    hidden: Tensor
    spacing: Tensor
    parent: Tensor
    corner: Tensor


def find_pairs(made: Mapping[str, Any]) -> list[Pairs]:
    """All pairs of features among what the heads of a network made, whichever objective they are for."""
    lists = [found for found in made.values() if isinstance(found, (list, tuple))]
    return [item for found in lists for item in found if isinstance(item, Pairs)]


def make_head(kind: str, channels: int, dim: int) -> nn.Module:
    """A projection of ``[N, channels]`` to ``[N, dim]``: "linear", or "mlp" with one hidden layer and a LayerNorm.

    Raises:
        UserError: for another kind.
    """
    if kind == "linear":
        return nn.Linear(channels, dim, bias=False)
    if kind == "mlp":
        hidden = max(channels, dim)
        return nn.Sequential(nn.Linear(channels, hidden), nn.LayerNorm(hidden), nn.GELU(), nn.Linear(hidden, dim))
    raise UserError(f"unknown alignment head {kind!r}: choose linear or mlp")
