# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""Which volume a draw is taken from: a function of the seed and the draw's number, so that nothing is replayed."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from bundle.data.names import name_digest
from bundle.data.prepared_volume import PreparedVolume
from bundle.data.printable import counted
from bundle.errors import UserError

__all__ = [
    "BalancedOrder",
    "InOrder",
    "ShuffledOrder",
    "VolumeOrder",
    "balanced_order",
    "repeat_unless_named",
    "volume_columns",
]

logger = logging.getLogger(__name__)

# random streams of one seed; 0, 1 and 3 are those of crops, masks and children
_ORDER_STREAM, _VALUE_STREAM, _WITHIN_STREAM = 2, 4, 5
#: draws in which every share is kept, as long as there are fewer volumes than that
_SHORTEST_CYCLE = 1000
_LEAST_SHARE = 1e-6
_SHOWN = 10


def repeat_unless_named(volumes: Sequence[PreparedVolume], *, parts: Sequence[str], times: int) -> list[PreparedVolume]:
    """Volumes of a data set that is mostly of one kind, with those of other kinds several times.

    Args:
        volumes: all of them.
        parts: a volume that has one of these in its name is of the common kind.
        times: how often one of another kind is there.
    """
    others = [volume for volume in volumes if not any(part in volume.name for part in parts)]
    return [*volumes, *(others * (times - 1))]


class VolumeOrder(Protocol):
    """From the number of a draw to the number of the volume."""

    def __call__(self, draw: int) -> int:
        """The number of the volume that the draw is taken from."""


class InOrder:
    """The volumes in their own order, again and again: for validation.

    Args:
        count: number of volumes.
    """

    def __init__(self, count: int) -> None:
        self.count = count

    def __call__(self, draw: int) -> int:
        """The number of the volume that the draw is taken from."""
        return draw % self.count


class ShuffledOrder:
    """Every `count` draws take each volume once, in an order shuffled anew.

    Args:
        count: number of volumes.
        seed: of the run.
        stream: further numbers that the orders derive from.
    """

    def __init__(self, count: int, seed: int, stream: Sequence[int] = (_ORDER_STREAM,)) -> None:
        self.count, self._numbers = count, (seed, *stream)
        self._round = -1
        self._order: NDArray[np.int64] = np.zeros(0, dtype=np.int64)

    def __call__(self, draw: int) -> int:
        """The number of the volume that the draw is taken from."""
        round_, place = divmod(draw, self.count)
        if round_ != self._round:  # the last order is kept: at 50,000 volumes it takes a millisecond to make
            self._round, self._order = round_, np.random.default_rng((*self._numbers, round_)).permutation(self.count)
        return int(self._order[place])


class BalancedOrder:
    """Each value of a column has a fixed share of the draws; within a value, `ShuffledOrder` takes its volumes in turn.

    The draws come in cycles, of at least 1000 draws, and of at least as many as there are volumes. In each cycle a
    value has the same number of draws, its share rounded, at places shuffled anew. So the number of draws that a value
    had before any draw is known without going through them.

    Args:
        values: of the column, one for each volume.
        shares: of the draws, by value; none is below 0, and their sum is 1.
        seed: of the run.

    Raises:
        UserError: if a share is less than one draw in a million.
    """

    def __init__(self, values: Sequence[str], shares: Mapping[str, float], seed: int) -> None:
        names = sorted(shares)
        rarest = min((share, name) for name, share in shares.items() if share > 0)
        if rarest[0] < _LEAST_SHARE:
            raise UserError(f"--balance_weights leave {rarest[1]} a share of {rarest[0]:.1g}: give it more, or 0")
        self.cycle, self.seed = max(len(values), _SHORTEST_CYCLE, round(2 / rarest[0])), seed
        ends = np.floor(np.array([*accumulate(shares[name] for name in names)]) * self.cycle + 0.5).astype(np.int64)
        self.quotas = np.diff(ends, prepend=0)
        self._members = [[number for number, value in enumerate(values) if value == name] for name in names]
        self._within = [ShuffledOrder(len(held), seed, (_WITHIN_STREAM, n)) for n, held in enumerate(self._members)]
        self._cycle = -1
        self._value_at: NDArray[np.int64] = ends
        self._before: NDArray[np.int64] = ends

    def __call__(self, draw: int) -> int:
        """The number of the volume that the draw is taken from."""
        cycle, place = divmod(draw, self.cycle)
        if cycle != self._cycle:
            self._cycle, (self._value_at, self._before) = cycle, self._shuffle(cycle)
        value = int(self._value_at[place])
        earlier = cycle * int(self.quotas[value]) + int(self._before[place])
        return self._members[value][self._within[value](earlier)]

    def _shuffle(self, cycle: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """For each place of the cycle the number of its value, and how many places before it have the same."""
        generator = np.random.default_rng((self.seed, _VALUE_STREAM, cycle))
        value_at = generator.permutation(np.repeat(np.arange(len(self.quotas)), self.quotas))
        before = np.empty_like(value_at)
        for value, quota in enumerate(self.quotas):
            before[value_at == value] = np.arange(quota)
        return value_at, before


def volume_columns(volume: PreparedVolume) -> dict[str, Any]:
    """What is known of a volume, by the name of the column: modality, group, and what its data set says beside."""
    return {**volume.columns, "modality": volume.modality, "group": volume.group}


def balanced_order(
    volumes: Sequence[PreparedVolume],
    column: str,
    weights: Mapping[str, float] | None,
    seed: int,
    *,
    hash_names: bool = False,
) -> BalancedOrder:
    """The order in which every value of a column is drawn equally often, or as often as its weight says.

    Args:
        volumes: to draw from.
        column: one of those of `volume_columns`.
        weights: by value, in any unit; a value that is not named has weight 1.
        seed: of the run.
        hash_names: whether the log has digests of the values, which may be names of folders.

    Raises:
        UserError: if the volumes have no such column, or a weight fits none of them or cannot work.
    """
    known = [volume_columns(volume) for volume in volumes]
    common = sorted(set.intersection(*(set(columns) for columns in known)))
    if column not in common:
        raise UserError(f"--balance {column} is no column of these volumes: give one of {', '.join(common)}")
    values = [str(columns[column]) for columns in known]
    counts = {value: values.count(value) for value in sorted(set(values))}
    is_shown = column != "group" and (column == "modality" or not hash_names)
    shares = _shares(counts, column, dict(weights or {}), is_shown=is_shown)
    if column == "group":  # a patient's digest stays in memory
        logger.info("balance group: %d groups are drawn equally often, unless they have weights", len(counts))
    else:
        names = {value: value if is_shown else name_digest(value) for value in counts}
        told = [f"{names[value]} {shares[value]:.1%} ({counted(number, 'volume')})" for value, number in counts.items()]
        more = [f"and {len(told) - _SHOWN} more"] if len(told) > _SHOWN else []
        logger.info("balance %s, shares of the crops: %s", column, ", ".join(told[:_SHOWN] + more))
    return BalancedOrder(values, shares, seed)


def _shares(counts: Mapping[str, int], column: str, weights: Mapping[str, Any], *, is_shown: bool) -> dict[str, float]:
    given = {str(value): weight for value, weight in weights.items()}
    known = list(counts)[:_SHOWN] if is_shown else []
    for value, weight in given.items():
        if value not in counts:
            raise UserError(
                f"--balance_weights names {value}, which is no {column} of the volumes to train on: "
                + (f"give weights of {', '.join(known)}" if known else "leave it out")
            )
        if isinstance(weight, bool) or not isinstance(weight, (int, float)) or not 0 <= weight < np.inf:
            raise UserError(f"--balance_weights of {value} is {weight}: give a number from 0")
    chosen = {value: float(given.get(value, 1)) for value in counts}
    total = sum(chosen.values())
    if total == 0:
        raise UserError("--balance_weights are all 0: give one a weight above 0")
    return {value: weight / total for value, weight in chosen.items()}
