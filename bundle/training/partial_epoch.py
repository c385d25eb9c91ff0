# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""What handlers have gathered in an epoch so far: kept in a checkpoint within it, so that its means stay whole."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol
from weakref import WeakKeyDictionary

from ignite.engine import Engine

__all__ = ["gathered_so_far", "gathers", "take_up"]


class _Gathering(Protocol):
    def so_far(self) -> dict[str, Any]:
        """What this process has gathered since the epoch began: plain values."""

    def take_up(self, states: Sequence[Mapping[str, Any]]) -> None:
        """Begins the next epoch with what `so_far` gave, of one process or of several."""


_by_engine: WeakKeyDictionary[Engine, dict[str, _Gathering]] = WeakKeyDictionary()


def gathers(engine: Engine, name: str, handler: _Gathering) -> None:
    """Says that a handler of a trainer gathers something over an epoch."""
    _by_engine.setdefault(engine, {})[name] = handler


def gathered_so_far(engine: Engine) -> dict[str, dict[str, Any]]:
    """Of each such handler of this process."""
    return {name: handler.so_far() for name, handler in _by_engine.get(engine, {}).items()}


def take_up(engine: Engine, states: Sequence[Mapping[str, Mapping[str, Any]]], rank: int, world: int) -> None:
    """Shares out what the processes had gathered when a checkpoint was written over those that there are now.

    Args:
        engine: the trainer.
        states: what `gathered_so_far` gave, one for each process that there was.
        rank: of this process.
        world: number of processes now.
    """
    mine = states[rank::world]
    for name, handler in _by_engine.get(engine, {}).items():
        handler.take_up([state[name] for state in mine if name in state])
