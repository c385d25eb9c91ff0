# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""All runs of a folder must be of the same people, scans, weights and options: else arms are compared on other data."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from does_pretraining_help_parts.people import People

from bundle.atomic import replace_file
from bundle.data import FoundVolume
from bundle.data.fingerprints import labelled_fingerprint
from bundle.data.names import name_digest
from bundle.errors import UserError
from bundle.evaluation.starts import Start
from bundle.weights import ModelFiles, checksum

__all__ = ["check_same", "check_weights", "describe_people", "describe_weights"]

_EARLIER = (
    "the folder was begun with an earlier version, which recorded neither who could be drawn nor the weights, and "
    "counted a class that is neither in a scan nor predicted as Dice 0: where one of these has changed, or a scan "
    "lacks a class, start again with another --output_dir"
)


def describe_people(people: People, volumes: Iterable[FoundVolume], *, hashed: bool = False) -> dict[str, Any]:
    """Who has which part, and digests of their scans and labels. Draws depend on the order of the pool.

    Args:
        people: by part.
        volumes: all labelled scans.
        hashed: whether scans have digests for names.
    """
    parts = {"held_out": people.held_out, "choosing": people.choosing}
    used = {scan for part in (*parts.values(), people.pool) for scans in part.values() for scan in scans}
    found = {volume.name: labelled_fingerprint(volume) for volume in volumes if volume.name in used}
    names = {name: name_digest(name) if hashed else name for name in found}
    return {
        **{name: sorted(names[scan] for scans in part.values() for scan in scans) for name, part in parts.items()},
        "pool": [[names[scan] for scan in people.pool[person]] for person in sorted(people.pool)],
        "scans": {names[name]: digest for name, digest in found.items()},
    }


def describe_weights(arms: Mapping[str, Start]) -> dict[str, list[str]]:
    """By arm the sha256 of its files of weights."""
    found = {name: ModelFiles(start.weights) for name, start in arms.items() if start.weights is not None}
    return {
        name: [checksum(file) for file in (files.weights, files.decoder) if file.is_file()]
        for name, files in found.items()
    }


def check_same(
    folder: Path, options: Mapping[str, Any], people: Mapping[str, Any], weights: Mapping[str, list[str]]
) -> list[str]:
    """Begins a folder, or sees that it was begun with the same; weights may be added to those that are there.

    Args:
        folder: of the experiment.
        options: that change every run.
        people: from `describe_people`.
        weights: from `describe_weights`.

    Returns:
        What a reader must know of the folder, a line each.

    Raises:
        UserError: if something differs.
    """
    file = folder / "settings.json"
    now = json.loads(json.dumps({**options, **people, "weights": weights}))
    if not file.is_file():
        _write(file, now)
        return []
    before = json.loads(file.read_text())
    for name in options:
        if before.get(name) != now[name]:
            raise UserError(
                f"{folder} was begun with {name} {before.get(name)}, and now it is {now[name]}: give the same to go "
                "on, or another --output_dir"
            )
    for name in ("held_out", "choosing", "pool", "scans"):
        if name in before and before[name] != now[name]:
            _refuse_people(folder, name, before[name], now[name])
    if "weights" not in before:
        return [_EARLIER]
    check_weights(folder, before["weights"], now["weights"])
    _write(file, {**before, "weights": {**before["weights"], **now["weights"]}})
    return []


def check_weights(folder: Path, before: Mapping[str, list[str]], now: Mapping[str, list[str]]) -> None:
    """Compares weights that are in both.

    Raises:
        UserError: if some have changed.
    """
    for arm, sums in before.items():
        if now.get(arm, sums) != sums:
            raise UserError(
                f"the weights {arm} have changed since {folder} was begun: give those that it was begun with, or "
                "another --output_dir"
            )


def _refuse_people(folder: Path, name: str, before: Any, now: Any) -> None:
    meaning = {"scans": "or labels", "held_out": "to measure", "choosing": "to choose learning rates on",
               "pool": "to draw from"}  # fmt: skip
    old, new = (
        {json.dumps(one) for one in (part.items() if isinstance(part, dict) else part)} for part in (before, now)
    )
    other = sorted(new ^ old, key=lambda one: (one in old, one))
    example = f", such as {_first_name(json.loads(other[0]))}" if other else ", in another order"
    raise UserError(
        f"{folder} was begun with other scans {meaning[name]} ({len(new - old)} are new or changed, {len(old - new)} "
        f"gone or changed{example}): put the data and --test_people back, and give --lrs as before, or give another "
        "--output_dir"
    )


def _first_name(found: str | Sequence[str]) -> str:
    return found if isinstance(found, str) else found[0]


def _write(file: Path, content: Mapping[str, Any]) -> None:
    with replace_file(file) as temporary:
        temporary.write_text(json.dumps(content, indent=1) + "\n")
