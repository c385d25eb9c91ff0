# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""Who is held out, and who may be trained on."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from bundle.data import FoundVolume
from bundle.errors import UserError

__all__ = ["People", "part_people"]

_HELD_OUT_SEED = 7


@dataclass(frozen=True)
class People:
    """Who is held out, who may be drawn for training, and who chooses the learning rates.

    Args:
        held_out: scans of people who are never trained on, by person.
        pool: likewise of those who may be drawn.
        choosing: likewise of those on whom learning rates are chosen; empty without --lrs.
    """

    held_out: Mapping[str, list[str]]
    pool: Mapping[str, list[str]]
    choosing: Mapping[str, list[str]]

    def draw(self, count: int, seed: int) -> list[str]:
        """The scans of the labelled people of a seed. Those of 5 people are among those of 10."""
        order = sorted(self.pool)
        random.Random(seed).shuffle(order)  # noqa: S311 - no secret
        return [scan for person in order[:count] for scan in self.pool[person]]


def part_people(volumes: Sequence[FoundVolume], held_out: int | None, choosing: bool) -> People:
    """Holds out the people of the list's `test`, or draws some: the same ones whatever else is asked.

    Args:
        volumes: all labelled scans.
        held_out: how many people; None: a third, up to 40.
        choosing: whether some more, a fifth of the rest, are to choose learning rates.

    Raises:
        UserError: if there are too few.
    """
    people: dict[str, list[str]] = {}
    tested = {volume.group or volume.name for volume in volumes if volume.part == "test"}
    for volume in sorted(volumes, key=lambda volume: volume.name):
        people.setdefault(volume.group or volume.name, []).append(volume.name)
    order = sorted(people)
    random.Random(_HELD_OUT_SEED).shuffle(order)  # noqa: S311 - no secret
    count = min(40, len(order) // 3) if held_out is None else held_out
    if not tested:
        if not 0 < count < len(order):
            raise UserError(f"--test_people {count} cannot work with {len(order)} people: hold out some, and keep some")
        tested = {*order[:count]}
    rest = [person for person in order if person not in tested]
    chosen = rest[: max(2, len(rest) // 5)] if choosing else []
    parts = ([p for p in order if p in tested][:held_out], rest[len(chosen) :], chosen)
    return People(*({person: people[person] for person in part} for part in parts))
