# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""A label map as a DICOM SEG, which a PACS viewer opens over the series.

The segmentation is BINARY and not compressed, one bit per voxel and segment, and frames in which a segment is not there
are left out: this form every reader knows, 3D Slicer, dcmqi and OHIF alike. The standard allows RLE and other
compression of whole bytes only, for FRACTIONAL and for the newer LABELMAP, which older viewers do not open.
"""

from __future__ import annotations

import importlib.util
import logging
import os
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
from monai.config import KeysCollection
from monai.transforms import MapTransform

from bundle.atomic import replace_file
from bundle.data import FoundVolume
from bundle.data.dicom import frames_on_grid, read_header
from bundle.data.straighten import is_sheared
from bundle.errors import UserError, VolumeError
from bundle.prediction import PredictionFolder

__all__ = ["SaveDicomSegd", "check_dicom_seg", "write_dicom_seg"]

logger = logging.getLogger(__name__)

#: slices whose segments are looked up together: a look-up takes 8 bytes per voxel
_AT_A_TIME = 32
_TILTED = (
    "the slices are tilted against the long axis: the DICOM SEG lies over each image, as PACS viewers show it, and "
    "dcmqi and 3D Slicer, which know right angles only, show it displaced"
)


def check_dicom_seg(wanted: bool) -> bool:
    """`wanted`, if a DICOM SEG can be written here.

    Raises:
        UserError: if highdicom is not installed.
    """
    if wanted and importlib.util.find_spec("highdicom") is None:
        raise UserError('--dicom_seg True needs highdicom: run "python -m pip install -c constraints.txt highdicom"')
    return wanted


def write_dicom_seg(
    path: str | os.PathLike[str],
    label_map: np.ndarray,
    affine: np.ndarray,
    *,
    files: Sequence[str],
    classes: Mapping[str, int],
    name: str,
    model: str = "unknown",
) -> str:
    """Writes the label map of a DICOM series as a DICOM SEG.

    Where each slice of the grid is an image of the series, the SEG lies voxel for voxel over the images and refers to
    each of them. With a tilted gantry that is so, too, but readers that make one volume of it need not see the tilt:
    dcmqi and 3D Slicer stack the slices at right angles. Where the reader has resampled uneven slices, the SEG
    has the label map's own slices at their right places in the same frame of reference.

    Segments are numbered in the order of `classes`, and named and coloured as they are in the pictures. Of the patient
    and the study it has what the standard requires (`PATIENT_AND_STUDY`), copied from the series.

    Args:
        path: the file to write.
        label_map: integers ``[columns, rows, slices]`` on the grid that `bundle.data.dicom.read_series` gives.
        affine: ``[4, 4]``, from index to RAS mm.
        files: of the series.
        classes: value in the label map by the name of each class.
        name: what to call the series in an error.
        model: what identifies the model, such as its sha256; the first 64 characters are written.

    Returns:
        What a user must know of the SEG, or "".

    Raises:
        VolumeError: if the files are no DICOM series, or lack what a reference needs, such as a frame of reference.
    """
    # highdicom is an extra, and training works without pydicom
    from pydicom.config import disable_value_validation  # noqa: PLC0415

    from bundle.prediction.dicom_seg import copy_patient_and_study, source_images  # noqa: PLC0415
    from bundle.prediction.dicom_seg.make import make_segmentation  # noqa: PLC0415

    if not files or read_header(files[0], ["SOPClassUID"]) is None:
        raise VolumeError(name, "is no DICOM series, so no DICOM SEG can refer to it", "use the label map's NIfTI file")
    numbers = _segment_numbers(label_map, classes)
    if not numbers.any():
        raise VolumeError(name, "has no voxel of any class, so there is no DICOM SEG of it", "see measurements.csv")
    frames, whole = frames_on_grid(files, affine, label_map.shape, name)
    sources = source_images(frames, affine, name)
    places = [frame.place[0] for frame in frames if frame.place is not None] if whole else None
    try:
        seg = make_segmentation(numbers, affine, sources=sources, places=places, classes=classes, model=model)
    except (AttributeError, LookupError, TypeError, ValueError) as error:  # highdicom's, on files with faults
        reason = (str(error).strip().splitlines() or [type(error).__name__])[-1]
        raise VolumeError(name, f"cannot be given a DICOM SEG ({reason})", "use the label map's NIfTI file") from error
    # else pydicom would show the attributes of a patient that are not as the standard wants them
    with disable_value_validation(), replace_file(path) as temporary:
        copy_patient_and_study(frames[0].file, seg)
        seg.save_as(temporary)
    if not whole:
        return "the DICOM SEG has slices of its own: those of the series are not evenly spaced"
    return _TILTED if is_sheared(affine) else ""


class SaveDicomSegd(MapTransform):
    """Writes the label map of each scan that is a DICOM series as `dicom_seg/<name>.dcm`.

    The file is added to `files`. What a user must know of it, or why there is none, comes into `row`, `notes`.

    Args:
        output: the folder of the results.
        keys: of the label map, ``[1, D, H, W]`` on the scan's own grid, a `MetaTensor`.
        classes: as for `write_dicom_seg`.
        scans: with their files.
        model: as for `write_dicom_seg`.
        enabled: False writes nothing.

    Raises:
        UserError: if it is enabled and highdicom is not installed, when it is made.
    """

    def __init__(
        self,
        output: PredictionFolder,
        keys: KeysCollection = "pred",
        *,
        classes: Mapping[str, int],
        scans: Sequence[FoundVolume],
        model: str = "unknown",
        enabled: bool = True,
    ) -> None:
        super().__init__(keys)
        self.output, self.classes, self.model = output, dict(classes), model
        self.files = {scan.name: scan.files for scan in scans}
        self.enabled = check_dicom_seg(enabled)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        item = dict(data)
        if not self.enabled:
            return item
        labels, name = item[self.first_key(item)], str(item["name"])
        path = self.output.dicom_seg(name)
        try:
            note = write_dicom_seg(
                path, np.asarray(labels[0]), np.asarray(labels.affine), files=self.files[name], classes=self.classes,
                name=name, model=self.model,
            )  # fmt: skip
            item["files"] = [*item.get("files", []), path.relative_to(self.output.path).as_posix()]
        except VolumeError as error:  # the label map is written: no reason to skip the scan
            path.unlink(missing_ok=True)  # of an earlier run
            note = f"no DICOM SEG: {error.problem}"
            logger.warning("%s: %s; %s", name, note, error.remedy)
        notes = [text for text in (item.get("row", {}).get("notes"), note) if text]
        return {**item, "row": {**item.get("row", {}), "notes": "; ".join(notes)}}


def _segment_numbers(label_map: np.ndarray, classes: Mapping[str, int]) -> np.ndarray:
    """The number of the segment of each voxel, uint8 ``[slices, rows, columns]``; 0 is background."""
    highest = max(int(label_map.max()), *classes.values())
    table = np.zeros(highest + 1, dtype=np.uint8)
    table[list(classes.values())] = np.arange(1, len(classes) + 1)
    numbers = np.empty(label_map.shape[::-1], dtype=np.uint8)
    for start in range(0, len(numbers), _AT_A_TIME):
        part = np.ascontiguousarray(label_map[:, :, start : start + _AT_A_TIME])
        numbers[start : start + _AT_A_TIME] = table[part].T
    return numbers
