# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""Names of volumes: without their ending, and pseudonyms where a path may name a patient."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from bundle.data.dicom import COPIES_OF
from bundle.data.find import VOLUME_SUFFIXES
from bundle.data.found_volume import FoundVolume

__all__ = ["name_digest", "pseudonymous", "pseudonymous_text", "without_ending", "without_paths"]


def name_digest(name: str) -> str:
    """The first 16 digits of a name's sha256: the same name has the same, so whoever can guess a name can check it."""
    return hashlib.sha256(name.encode()).hexdigest()[:16]


def without_ending(name: str) -> str:
    """A name without ".nii.gz" or whatever else a file of a volume ends in, in any case."""
    ending = next((ending for ending in VOLUME_SUFFIXES if name.lower().endswith(ending)), "")
    return name[: len(name) - len(ending)]


def without_paths(text: str, volume: FoundVolume, name: str) -> str:
    """A message about a volume with `name` in place of its name and of the paths of all its files."""
    annotated: list[str] = []
    for value in volume.annotations.values():
        values = value.values() if isinstance(value, Mapping) else [value]
        annotated += [file for file in values if isinstance(file, str)]
    files = [*volume.files, *(file for files in volume.channels for file in files), *annotated]
    words = {form for file in files for form in (str(Path(file).absolute()), file, Path(file).name)}
    for word in sorted({*words, volume.name}, key=len, reverse=True):  # the longest first: some contain others
        text = text.replace(word, name)
    return text


def pseudonymous_text(text: str, volume: FoundVolume) -> str:
    """A message about a volume that names neither it nor another one: digests stand in their places."""
    text, of, other = text.partition(COPIES_OF)
    return without_paths(text, volume, name_digest(volume.name)) + of + (name_digest(other) if of else "")


def pseudonymous(volume: FoundVolume) -> FoundVolume:
    """The volume under a digest of its name, also in the reason that it is left out for."""
    problem, remedy = (pseudonymous_text(text, volume) for text in volume.left_out)
    return replace(volume, name=name_digest(volume.name), left_out=(problem, remedy))
