# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""What a DICOM SEG must know of the series that it belongs to."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from pydicom import DataElement, Dataset
from pydicom.config import IGNORE
from pydicom.datadict import dictionary_VR
from pydicom.multival import MultiValue
from pydicom.valuerep import format_number_as_ds

from bundle.data.dicom import Frame, read_header
from bundle.errors import VolumeError

__all__ = ["PATIENT_AND_STUDY", "copy_patient_and_study", "source_images"]

#: what the modules Patient and General Study require (types 1 and 2): a PACS finds the patient and the study by it
PATIENT_AND_STUDY = (
    "PatientName",
    "PatientID",
    "PatientBirthDate",
    "PatientSex",
    "StudyInstanceUID",
    "StudyDate",
    "StudyTime",
    "ReferringPhysicianName",
    "StudyID",
    "AccessionNumber",
)
#: what references need; without any of it there can be no DICOM SEG
_REQUIRED = {
    "SOPClassUID": "a SOP class",
    "SOPInstanceUID": "an instance UID",
    "SeriesInstanceUID": "a series UID",
    "StudyInstanceUID": "a study UID",
    "FrameOfReferenceUID": "a frame of reference",
}
#: of images that were compressed with losses: what is derived from them must say so, too
_LOSSES = ("LossyImageCompression", "LossyImageCompressionRatio", "LossyImageCompressionMethod")
_PLACE = ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing")
_COPIED = (*_REQUIRED, *_LOSSES, *_PLACE, "Modality", "Rows", "Columns", "NumberOfFrames", "SliceThickness")
_GROUPS = ("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence")


def source_images(frames: Sequence[Frame], affine: np.ndarray, name: str) -> list[Dataset]:
    """The headers of the files in which images lie, each once, in the images' order, as highdicom needs them.

    They hold references and geometry, and nothing of the patient. Slices whose directions differ by rounding get those
    of the grid.

    Args:
        frames: the images.
        affine: of the grid, ``[4, 4]`` to RAS mm.
        name: what to call the series in an error.

    Raises:
        VolumeError: if a header lacks what a reference needs.
    """
    lps = np.diag([-1.0, -1.0, 1.0]) @ np.asarray(affine, dtype=np.float64)[:3, :3]
    row, column = lps[:, 0] / np.linalg.norm(lps[:, 0]), lps[:, 1] / np.linalg.norm(lps[:, 1])
    step = format_number_as_ds(abs(float(np.cross(row, column) @ lps[:, 2])))
    headers = [_geometry(file, step, name) for file in dict.fromkeys(frame.file for frame in frames)]
    if len({tuple(header.get("ImageOrientationPatient") or ()) for header in headers}) > 1:
        for header in headers:
            header.ImageOrientationPatient = [format_number_as_ds(float(cosine)) for cosine in (*row, *column)]
    return headers


def copy_patient_and_study(file: str, target: Dataset) -> None:
    """Gives a new object the patient and the study of a file, as far as the standard requires it.

    Text becomes Unicode. What the file lacks is empty.
    """
    header = read_header(file, [*PATIENT_AND_STUDY, "SpecificCharacterSet"])
    assert header is not None  # it was read before
    header.decode()
    for keyword in PATIENT_AND_STUDY:
        value = header.get(keyword)
        values = value if isinstance(value, MultiValue) else [value or ""]
        # a new element: an old one would be checked, and a warning would show what is not as the standard wants it
        text = "\\".join(map(str, values))
        target[keyword] = DataElement(keyword, dictionary_VR(keyword), text, validation_mode=IGNORE)


def _geometry(file: str, step: str, name: str) -> Dataset:
    header = read_header(file, [*_COPIED, *_GROUPS])
    missing = [words for keyword, words in _REQUIRED.items() if header is None or not header.get(keyword)]
    if header is None or missing:
        raise VolumeError(
            name,
            f"has DICOM files without {' and '.join(missing)}, so no DICOM SEG can refer to them",
            "use the label map's NIfTI file",
        )
    made = Dataset()
    for keyword in _COPIED:
        if header.get(keyword) is not None:
            made.add(header[keyword])
    # that of MR files is the distance of the slices or the gap between them, as the vendor likes
    made.SpacingBetweenSlices = step
    if not header.get("SliceThickness"):
        made.SliceThickness = step
    if header.get("PerFrameFunctionalGroupsSequence"):
        _add_groups(made, header, step, name)
    for keyword in PATIENT_AND_STUDY:  # highdicom asks for them
        if keyword not in made:
            setattr(made, keyword, "")
    return made


def _add_groups(made: Dataset, header: Dataset, step: str, name: str) -> None:
    """The geometry of a multi-frame file: pixels and directions shared, a position for each frame."""
    each = list(header.PerFrameFunctionalGroupsSequence)
    groups = [*(header.get("SharedFunctionalGroupsSequence") or []), *each]
    shared = Dataset()
    for sequence in ("PixelMeasuresSequence", "PlaneOrientationSequence"):
        found: Any = next((group[sequence] for group in groups if group.get(sequence)), None)
        if found is None or not all(frame.get("PlanePositionSequence") for frame in each):
            raise VolumeError(
                name, "has frames without a place, so no DICOM SEG can refer to them", "use the NIfTI file"
            )
        shared.add(found)
    (measures,) = shared.PixelMeasuresSequence
    measures.SpacingBetweenSlices = step
    if not measures.get("SliceThickness"):
        measures.SliceThickness = step
    made.SharedFunctionalGroupsSequence = [shared]
    made.PerFrameFunctionalGroupsSequence = [_position(frame) for frame in each]


def _position(frame: Dataset) -> Dataset:
    kept = Dataset()
    kept.PlanePositionSequence = frame.PlanePositionSequence
    return kept
