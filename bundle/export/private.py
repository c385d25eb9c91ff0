# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""What of `model.json` stays with those who trained a model: it tells which files of theirs it has seen."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["without_private"]

_PRIVATE = ("fingerprints",)


def without_private(content: Mapping[str, Any]) -> dict[str, Any]:
    """The content of a `model.json` as it may be handed on.

    Fingerprints of scans are left out: the model's own, and those of the weights that it began with, in each step of
    `origin`. Whoever has a scan could tell by them that it was trained on.

    Args:
        content: of a `model.json`; it stays as it is.
    """
    told = _kept(content)
    if isinstance(steps := told.get("origin"), list):
        told["origin"] = [_kept(step) if isinstance(step, Mapping) else step for step in steps]
    return told


def _kept(content: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in content.items() if key not in _PRIVATE}
