# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""Finds the DICOM series below a folder, by the headers of all files."""

from __future__ import annotations

import filecmp
import hashlib
import logging
import os
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bundle.data.dicom.pixels import stored_frames
from bundle.data.files import is_locked, walk_folders

if TYPE_CHECKING:
    import pydicom

__all__ = ["UNREADABLE", "Series", "find_dicom", "find_series", "numbered", "read_header"]

logger = logging.getLogger(__name__)

_TAGS = [
    "Modality",
    "PatientID",
    "StudyInstanceUID",
    "SeriesInstanceUID",
    "SOPInstanceUID",
    "ImagePositionPatient",
    "ImageOrientationPatient",
    "Rows",
    "RescaleSlope",
    "RescaleIntercept",
]
#: files of these kinds are no DICOM; their first bytes need not be read
_OTHER_KINDS = (".nii.gz", ".nii", ".nrrd", ".nhdr", ".mha", ".mhd", ".json", ".txt", ".csv", ".png", ".jpg")
_MODALITIES = ("CT", "MR", "MRI", "", None)
#: stands for a modality of files and folders that cannot be opened
UNREADABLE = "unreadable"
#: two slices are at one place if they are nearer than this, in mm
_SAME_PLACE = 1e-3


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


@dataclass(frozen=True)
class _Slice:
    """What must be known of a file to give it to a series."""

    file: Path
    series: str
    study: str
    instance: str
    modality: str
    group: str
    place: tuple[float, ...]  # position and orientation, or nothing
    taken: object  # what no two slices of one volume share
    scaling: tuple[str, str]  # slope and intercept, as they are written

    @property
    def along(self) -> float:
        """Position along the normal of the slice."""
        position, row, column = np.reshape(self.place, (3, 3))
        return float(np.dot(np.cross(row, column), position))


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
        Folders, files and links that cannot be opened stand there by their own paths, with the modality `UNREADABLE`.
    """
    locked: list[Path] = []
    others: Counter[tuple[Path, str]] = Counter()
    by_folder: dict[str, dict[Path, list[_Slice]]] = defaultdict(lambda: defaultdict(list))
    for folder, files in walk_folders(root, locked):
        for file in files:
            found = _slice(file)
            if isinstance(found, str):
                others[file if found == UNREADABLE else folder, found] += 1
            elif found is not None:
                by_folder[found.series or str(folder)][folder].append(found)
    others.update((path, UNREADABLE) for path in locked)
    if count := sum(files for (_, modality), files in others.items() if modality == UNREADABLE):
        logger.warning("left out %d file(s), folder(s) or link(s) that cannot be opened: correct them", count)
    parts = [_series(*part) for uid in sorted(by_folder) for part in _joined(by_folder[uid])]
    return sorted(parts, key=lambda series: str(series.folder)), dict(others)


def read_header(file: str | os.PathLike[str], tags: Sequence[str] | None = None) -> pydicom.Dataset | None:
    """The header of a DICOM file, with or without a preamble; None for any other file.

    Args:
        file: to read; the pixels are not read.
        tags: the only ones to read; None reads all.
    """
    import pydicom  # noqa: PLC0415 - needed for DICOM only

    try:
        with Path(file).open("rb") as stream:
            if not _looks_like_dicom(stream.read(132)):
                return None
            stream.seek(0)
            return pydicom.dcmread(stream, stop_before_pixels=True, force=True, specific_tags=tags)
    except Exception:  # noqa: BLE001  a damaged header raises anything, and is none
        return None


def _looks_like_dicom(start: bytes) -> bool:
    """Whether a file begins as DICOM does, or as an old one without preamble: with an element of group 2 or 8."""
    if start[128:132] == b"DICM":
        return True
    if len(start) < 132:
        return False
    for order in ("little", "big"):
        group, element = int.from_bytes(start[:2], order), int.from_bytes(start[2:4], order)
        known = (group == 2 and element <= 0x0010) or (group == 8 and element <= 0x0018)
        if known and (start[4:6].isalpha() or (order == "little" and int.from_bytes(start[4:8], order) <= 64)):
            return True
    return False


def _slice(file: Path) -> _Slice | str | None:
    """None for what is no DICOM; the modality of a report, a plan, a segmentation, a dose, a PET or another object."""
    if file.name.lower().endswith(_OTHER_KINDS):
        return None
    header = read_header(file, _TAGS)
    if header is None:
        return UNREADABLE if is_locked(file) else None
    # an anonymiser may have emptied the tag: such an image stays, and its intensities tell
    modality = header.get("Modality")
    if "Rows" not in header or modality not in _MODALITIES:
        return str(modality or "") or None  # the index of a CD has none
    person = str(header.get("PatientID") or header.get("StudyInstanceUID") or "")
    uid, patient = str(header.get("SeriesInstanceUID") or ""), str(header.get("PatientID") or "")
    place, instance = _place(header), str(header.get("SOPInstanceUID") or file)
    return _Slice(
        file=file,
        # careless anonymisers give one UID to the series of several patients
        series=f"{uid} {patient}" if uid else "",
        study=str(header.get("StudyInstanceUID") or ""),
        instance=instance,
        modality=str(modality or ""),
        group=hashlib.sha256(person.encode()).hexdigest() if person else "",
        place=place,
        taken=tuple(round(value / _SAME_PLACE) for value in place) or instance,
        scaling=(str(header.get("RescaleSlope")), str(header.get("RescaleIntercept"))),
    )


def _place(header: pydicom.Dataset) -> tuple[float, ...]:
    try:
        values: list[Any] = [header.get("ImagePositionPatient"), header.get("ImageOrientationPatient")]
        place = tuple(float(value) for part in values for value in part or ())
    except (TypeError, ValueError):
        return ()
    return place if len(place) == 9 and np.isfinite(place).all() else ()


def _joined(folders: dict[Path, list[_Slice]]) -> list[tuple[list[_Slice], Path | None]]:
    """The slices of one series by the volumes that they belong to: a folder that adds new places joins the first.

    For a folder that holds a copy of each image of a volume, the second value is the volume's folder.
    """
    volumes: list[list[_Slice]] = []
    copies: list[tuple[list[_Slice], Path | None]] = []
    for _, slices in sorted(folders.items()):
        alike = [volume for volume in volumes if len(volume) == len(slices) and not _without_copies(slices, volume)]
        if alike:
            copies.append((slices, _folder(alike[0])))
        elif not any(_joins(slices, volume) for volume in volumes):
            volumes.append(list(slices))
    return [*((volume, None) for volume in volumes), *copies]


def _joins(slices: list[_Slice], volume: list[_Slice]) -> bool:
    """Adds the slices of another folder to a volume, if they are its missing ones or stray copies."""
    if slices[0].study != volume[0].study:
        return False
    taken = {other.taken for other in volume}
    fits = not any(new.taken in taken for new in _without_copies(slices, volume))
    if fits:
        volume.extend(slices)  # with the copies: the reader compares their pixels, and counts them
    return fits


def _without_copies(slices: list[_Slice], volume: list[_Slice]) -> list[_Slice]:
    files = {other.instance: other for other in volume}
    return [new for new in slices if new.instance not in files or not _are_copies(new, files[new.instance])]


def _are_copies(one: _Slice, other: _Slice) -> bool:
    """Whether two files of one instance are equal, or hold equal pixels: archives change tags and compress."""
    if filecmp.cmp(one.file, other.file, shallow=False):
        return True
    if (one.taken, one.scaling) != (other.taken, other.scaling):
        return False
    try:
        return np.array_equal(stored_frames(str(one.file)), stored_frames(str(other.file)))
    except Exception:  # noqa: BLE001  damaged pixels raise anything; the reader says so
        return False


def _series(slices: list[_Slice], copies: Path | None) -> Series:
    ordered = sorted(slices, key=lambda one: one.file)
    if all(one.place for one in slices):
        ordered.sort(key=lambda one: one.along)
    files = tuple(str(one.file) for one in ordered)
    return Series(_folder(slices), files, ordered[0].modality, ordered[0].group, copies)


def _folder(slices: list[_Slice]) -> Path:
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
