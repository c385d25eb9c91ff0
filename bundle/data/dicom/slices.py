# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""What must be known of a DICOM file to give it to a series."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bundle.data.dicom.headers import DamagedHeaderError, open_header
from bundle.data.files import is_locked

if TYPE_CHECKING:
    import pydicom

__all__ = [
    "DAMAGED",
    "SLICE_TAGS",
    "UNREADABLE",
    "Slice",
    "is_damaged_by_name",
    "is_of_another_kind",
    "place_taken",
    "read_slice",
    "slice_from_header",
]

#: what `slice_from_header` reads
SLICE_TAGS = [
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
#: stands for a modality of files that begin as DICOM, or are called so, and cannot be read
DAMAGED = "damaged"
_PREAMBLE = 132
_ENDINGS = (".dcm", ".ima", ".dicom")
#: SOP classes whose objects have pixels: images of CT and MR, of one frame, of several, and converted to several
_IMAGES = tuple(f"1.2.840.10008.5.1.4.1.1.{end}" for end in ("2", "2.1", "2.2", "4", "4.1", "4.3", "4.4"))
#: two slices are at one place if they are nearer than this, in mm
_SAME_PLACE = 1e-3


@dataclass(frozen=True)
class Slice:
    """What must be known of a file to give it to a series.

    Attributes:
        file: that holds it.
        series: what identifies the series, or "".
        study: likewise the study.
        instance: likewise the image; its file where nothing does.
        modality: as the header says, or "".
        group: a digest of the patient, or of the study where the patient was removed.
        place: position and orientation, nine numbers, or nothing.
        taken: as `place_taken`.
        scaling: slope and intercept, as they are written.
    """

    file: Path
    series: str
    study: str
    instance: str
    modality: str
    group: str
    place: tuple[float, ...]
    taken: object
    scaling: tuple[str, str]

    @property
    def along(self) -> float:
        """Position along the normal of the slice."""
        position, row, column = np.reshape(self.place, (3, 3))
        return float(np.dot(np.cross(row, column), position))


def is_of_another_kind(name: str) -> bool:
    """Whether a file's name says that it is no DICOM, or the index of a CD, so that its bytes need not be read."""
    return name.lower().endswith((*_OTHER_KINDS, "dicomdir"))


def is_damaged_by_name(file: Path) -> bool:
    """Whether a file is called as DICOM files are, and empty, or shorter than a preamble: a copy that failed."""
    return file.name.lower().endswith(_ENDINGS) and file.is_file() and file.stat().st_size < _PREAMBLE


def read_slice(file: Path) -> Slice | str | None:
    """As `slice_from_header`; None also for what is no DICOM, `UNREADABLE` for what may not be read."""
    if is_of_another_kind(file.name):
        return None
    try:
        header = open_header(file, SLICE_TAGS)
    except DamagedHeaderError:
        return DAMAGED
    except OSError:
        header = None
    if header is not None:
        return slice_from_header(header, file)
    if is_locked(file):
        return UNREADABLE
    return DAMAGED if is_damaged_by_name(file) else None


def slice_from_header(header: pydicom.FileDataset, file: Path) -> Slice | str | None:
    """What the header says of a slice of CT or MR.

    Of another object, such as a report, a plan, a segmentation, a dose or a PET, it is the modality; None if the header
    has none. Of an image whose header ends before it says how large it is, it is `DAMAGED`.
    """
    if _is_cut_off(header):
        return DAMAGED
    # an anonymiser may have emptied the tag: such an image stays, and its intensities tell
    modality = header.get("Modality")
    if "Rows" not in header or modality not in _MODALITIES:
        return str(modality or "") or None  # the index of a CD has none
    person = str(header.get("PatientID") or header.get("StudyInstanceUID") or "")
    uid, patient = str(header.get("SeriesInstanceUID") or ""), str(header.get("PatientID") or "")
    place, instance = _place(header), str(header.get("SOPInstanceUID") or file)
    return Slice(
        file=file,
        # careless anonymisers give one UID to the series of several patients
        series=f"{uid} {patient}" if uid else "",
        study=str(header.get("StudyInstanceUID") or ""),
        instance=instance,
        modality=str(modality or ""),
        group=hashlib.sha256(person.encode()).hexdigest() if person else "",
        place=place,
        taken=place_taken(place, instance),
        scaling=(str(header.get("RescaleSlope")), str(header.get("RescaleIntercept"))),
    )


def _is_cut_off(header: pydicom.FileDataset) -> bool:
    """Whether a header ends before it says how large its image is, or, after a preamble, what kind of object it has."""
    kind = header.file_meta.get("MediaStorageSOPClassUID")
    is_unknown = kind is None and "Modality" not in header and header.preamble is not None
    return "Rows" not in header and (kind in _IMAGES or is_unknown)


def place_taken(place: tuple[float, ...], instance: str) -> object:
    """What no two slices of one volume share: their place, or what identifies them where they have none."""
    return tuple(round(value / _SAME_PLACE) for value in place) or instance


def _place(header: pydicom.Dataset) -> tuple[float, ...]:
    try:
        values: list[Any] = [header.get("ImagePositionPatient"), header.get("ImageOrientationPatient")]
        place = tuple(float(value) for part in values for value in part or ())
    except (TypeError, ValueError):
        return ()
    return place if len(place) == 9 and np.isfinite(place).all() else ()
