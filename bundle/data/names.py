# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""Names of volumes: without their ending, and pseudonyms where a path may name a patient."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from bundle.data.dicom import COPIES_OF
from bundle.data.find import VOLUME_SUFFIXES
from bundle.data.found_volume import FoundVolume
from bundle.data.printable import printable

__all__ = ["name_digest", "pseudonymous", "pseudonymous_text", "without_ending", "without_paths"]

#: between quotes, else up to where it may end
_ABSOLUTE = re.compile(r"(?<=(['\"]))/(?:(?!\1).)+(?=\1)|(?<![\w.])/[^\s'\",;()]+")


def name_digest(name: str) -> str:
    """The first 16 digits of a name's sha256: the same name has the same, so whoever can guess a name can check it."""
    return hashlib.sha256(name.encode()).hexdigest()[:16]


def without_ending(name: str) -> str:
    """A name without ".nii.gz" or whatever else a file of a volume ends in, in any case."""
    ending = next((ending for ending in VOLUME_SUFFIXES if name.lower().endswith(ending)), "")
    return name[: len(name) - len(ending)]


def without_paths(text: str, volume: FoundVolume, name: str) -> str:
    """A message about a volume with `name` in place of its name, of the paths of all its files, and of what is beside.

    A header may name a file of voxels that nobody listed, such as the `.raw` of an `.mhd`. Of such a file the ending
    stays.
    """
    annotated: list[str] = []
    for value in volume.annotations.values():
        values = value.values() if isinstance(value, Mapping) else [value]
        annotated += [file for file in values if isinstance(file, str)]
    files = [*volume.files, *(file for files in volume.channels for file in files), *annotated]
    forms = {form for file in files for form in (str(Path(file).absolute()), file, Path(file).name)}
    words = forms | set(map(printable, forms))
    for word in _longest_first({*words, volume.name}):
        text = text.replace(word, name)
    return _without_neighbours(text, [Path(file) for file in files], name)


def _without_neighbours(text: str, files: Sequence[Path], name: str) -> str:
    """A message with `name` in place of files that are called like those of a volume, or lie in the same folders."""
    called = [(file, without_ending(file.name)) for file in files if file.name]
    stems = [(file, file.stem if stem == file.name else stem) for file, stem in called]
    for path in _longest_first(str(file.absolute().with_name(stem)) for file, stem in stems if stem):
        text = text.replace(path, name)
    if words := "|".join(re.escape(stem) for stem in _longest_first(stem for _, stem in stems if stem)):
        text = re.sub(rf"(?<!\w)(?:{words})(?=\.[A-Za-z])", lambda _: name, text)
    folders = {str(folder) for file in files for folder in (file.absolute().parent, file.parent)} - {".", os.sep}
    for folder in _longest_first(folders):
        start = rf"(?<![\w.-]){re.escape(folder + os.sep)}"
        for path in (rf"(?<=(['\"])){start}(?:(?!\1).)*", rf"{start}[^\s'\",;:()\[\]]*(?<!\.)"):
            text = re.sub(path, lambda found: name + _ending(found[0]), text)
    return text


def _ending(path: str) -> str:
    """Its last ending, where it looks like one."""
    ending = re.search(r"\.[A-Za-z]\w{0,4}$", path)
    return ending[0] if ending else ""


def _longest_first(words: Iterable[str]) -> list[str]:
    return sorted(set(words), key=len, reverse=True)  # some contain others


def pseudonymous_text(text: str, volume: FoundVolume) -> str:
    """A message about a volume that names neither it nor another one: digests stand in their places.

    Of all other absolute paths, such as those of another machine, three points are left.
    """
    text, of, other = text.partition(COPIES_OF)
    text = _ABSOLUTE.sub("...", without_paths(text, volume, name_digest(volume.name)))
    return text + of + (name_digest(other) if of else "")


def pseudonymous(volume: FoundVolume) -> FoundVolume:
    """The volume under a digest of its name, also in the reason that it is left out for."""
    problem, remedy = (pseudonymous_text(text, volume) for text in volume.left_out)
    return replace(volume, name=name_digest(volume.name), left_out=(problem, remedy))
