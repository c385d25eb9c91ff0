# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""Finds the DICOM series below a folder, by the headers of all files."""

from __future__ import annotations

import filecmp
import logging
import os
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bundle.data.dicom.pixels import stored_frames
from bundle.data.dicom.slices import DAMAGED, UNREADABLE, Slice, read_slice
from bundle.data.files import walk_folders
from bundle.data.printable import printable

__all__ = ["COPIES_OF", "Series", "find_dicom", "find_series", "join_folders", "numbered"]

logger = logging.getLogger(__name__)

#: begins the reason of a series that is not used; the folder that holds the same images follows
COPIES_OF = "holds copies of the DICOM images in "


@dataclass(frozen=True)
class Series:
    """The files of one series.

    Attributes:
        folder: that holds them all.
        files: in the order of their positions, where they have some.
        modality: what the header says, or "".
        group: a digest of the patient, or of the study where the patient was removed.
        copies: the folder of the series that this one is a copy of, or None.
    """

    folder: Path
    files: tuple[str, ...]
    modality: str
    group: str
    copies: Path | None = None

    def copied_from(self, base: Path, prefix: str = "") -> tuple[str, str] | None:
        """Why a copy is not used, with the other folder's path from `base` after `prefix`, and what to do, or None."""
        if self.copies is None:
            return None
        folder = str(Path(prefix, os.path.relpath(self.copies, base)))
        return COPIES_OF + printable(folder), "remove one of the two folders"


def find_series(root: Path) -> list[Series]:
    """The series that `find_dicom` finds."""
    return find_dicom(root)[0]


def find_dicom(root: Path) -> tuple[list[Series], dict[tuple[Path, str], int]]:
    """All series of CT or MR images at and below a folder, sorted by folder; links to folders are followed.

    A series may lie in several folders, as on a CD or in an archive. Two folders with slices at the same places are two
    series: phases, or another version of the images. A folder that holds nothing but copies of another folder's images
    is a series that says so.

    Returns:
        The series, and how many other DICOM objects of each modality (reports, plans, segmentations) each folder holds.
        Folders, files and links that cannot be opened stand there by their own paths, with the modality `UNREADABLE`;
        damaged files by their folder, with `DAMAGED`.
    """
    locked: list[Path] = []
    others: Counter[tuple[Path, str]] = Counter()
    by_folder: dict[str, dict[Path, list[Slice]]] = defaultdict(lambda: defaultdict(list))
    for folder, files in walk_folders(root, locked):
        for file in files:
            found = read_slice(file)
            if isinstance(found, str):
                others[file if found == UNREADABLE else folder, found] += 1
            elif found is not None:
                by_folder[found.series or str(folder)][folder].append(found)
    others.update((path, UNREADABLE) for path in locked)
    if count := sum(files for (_, modality), files in others.items() if modality == UNREADABLE):
        logger.warning("left out %d file(s), folder(s) or link(s) that cannot be opened: correct them", count)
    if count := sum(files for (_, modality), files in others.items() if modality == DAMAGED):
        logger.warning("left out %d DICOM file(s) that are empty or cut off: copy them again", count)
    parts = [series for uid in sorted(by_folder) for series in join_folders(by_folder[uid])]
    return sorted(parts, key=lambda series: str(series.folder)), dict(others)


def join_folders(folders: Mapping[Path, list[Slice]]) -> list[Series]:
    """The series that the slices of one name are, which lie in one or several folders, as `find_dicom` says."""
    return [_series(*part) for part in _joined(folders)]


def _joined(folders: Mapping[Path, list[Slice]]) -> list[tuple[list[Slice], Path | None]]:
    """The slices of one series by the volumes that they belong to: a folder that adds new places joins the first.

    For a folder that holds a copy of each image of a volume, the second value is the volume's folder.
    """
    volumes: list[list[Slice]] = []
    copies: list[tuple[list[Slice], Path | None]] = []
    for _, slices in sorted(folders.items()):
        alike = [volume for volume in volumes if len(volume) == len(slices) and not _without_copies(slices, volume)]
        if alike:
            copies.append((slices, _folder(alike[0])))
        elif not any(_joins(slices, volume) for volume in volumes):
            volumes.append(list(slices))
    return [*((volume, None) for volume in volumes), *copies]


def _joins(slices: list[Slice], volume: list[Slice]) -> bool:
    """Adds the slices of another folder to a volume, if they are its missing ones or stray copies."""
    if slices[0].study != volume[0].study:
        return False
    taken = {other.taken for other in volume}
    fits = not any(new.taken in taken for new in _without_copies(slices, volume))
    if fits:
        volume.extend(slices)  # with the copies: the reader compares their pixels, and counts them
    return fits


def _without_copies(slices: list[Slice], volume: list[Slice]) -> list[Slice]:
    files = {other.instance: other for other in volume}
    return [new for new in slices if new.instance not in files or not _are_copies(new, files[new.instance])]


def _are_copies(one: Slice, other: Slice) -> bool:
    """Whether two files of one instance are equal, or hold equal pixels: archives change tags and compress."""
    if filecmp.cmp(one.file, other.file, shallow=False):
        return True
    if (one.taken, one.scaling) != (other.taken, other.scaling):
        return False
    try:
        return np.array_equal(stored_frames(str(one.file)), stored_frames(str(other.file)))
    except Exception:  # noqa: BLE001  damaged pixels raise anything; the reader says so
        return False


def _series(slices: list[Slice], copies: Path | None) -> Series:
    ordered = sorted(slices, key=lambda one: one.file)
    if all(one.place for one in slices):
        ordered.sort(key=lambda one: one.along)
    files = tuple(str(one.file) for one in ordered)
    return Series(_folder(slices), files, ordered[0].modality, ordered[0].group, copies)


def _folder(slices: list[Slice]) -> Path:
    return Path(os.path.commonpath([one.file.parent for one in slices]))


def numbered(series: Sequence[Series], root: Path, prefix: str = "") -> Iterator[tuple[str, Series]]:
    """Each series with its name: its folder below `root`, after `prefix`, and a number where several share a folder.

    A series in `root` itself has the name of `root`, where there is no prefix.
    """
    by_folder: dict[Path, list[Series]] = defaultdict(list)
    for one in series:
        by_folder[one.folder].append(one)
    for folder, shared in by_folder.items():
        name = root.name if folder == root and not prefix else str(Path(prefix, folder.relative_to(root)))
        for number, one in enumerate(shared, start=1):
            yield (name if len(shared) == 1 else f"{name} (series {number})"), one
