# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""Says which of the evaluated scans the model has seen in its training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from bundle.data import FoundVolume
from bundle.data.fingerprints import fingerprint
from bundle.evaluation.names import case_name
from bundle.evaluation.summary import shortened_list

__all__ = ["seen_notes"]


def seen_notes(
    volumes: Sequence[FoundVolume], fingerprints: Mapping[str, Sequence[str]] | None, *, hashed: bool = False
) -> list[str]:
    """A line each on scans trained on, now, without labels or by an earlier model, and on those that chose the epoch.

    Args:
        volumes: the scans.
        fingerprints: of the scans of a training, by part, as in `model.json`; empty: not known; None: no model.
        hashed: whether scans have a digest for a name.
    """
    if fingerprints is None:
        return []
    if not fingerprints:
        return ["the model does not say which scans it was trained on, so some of these may be among them"]
    own = [(case_name(volume, hashed=hashed), fingerprint(volume.files)) for volume in volumes]
    notes = []
    for part, meaning in (
        ("training", "were trained on, so these values are not those of new scans"),
        ("unlabelled", "were trained on without their labels, so these values are not quite those of new scans"),
        ("earlier", "were trained on by a model that this one began with, so these values are not those of new scans"),
        ("validation", "chose the model's epoch, so these values are a little too good"),
    ):
        if seen := [name for name, digest in own if digest and digest in fingerprints.get(part, ())]:
            notes.append(f"{len(seen)} of {len(own)} scans {meaning}: {shortened_list(seen)}")
    return notes
