# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""Small DICOM files whose right values and places are known, since they are written from formulas."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sequence import Sequence as Items
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

ROW, COLUMN = np.array([1.0, 0, 0]), np.array([0.0, 1, 0])
SIZE = (10, 12)  # rows, columns
PIXEL = (1.5, 1.25)  # mm between rows, between columns
FIRST = np.array([-40.0, -50.0, 10.0])
COUNT, STEP = 8, 3.0

CT, MR = "1.2.840.10008.5.1.4.1.1.2", "1.2.840.10008.5.1.4.1.1.4"
SCREEN_SAVE = "1.2.840.10008.5.1.4.1.1.7"


def place(k: float) -> np.ndarray:
    """Position of slice `k`, LPS mm."""
    return FIRST + np.array([0, 0, STEP * k])


def planes(count: int = COUNT, seed: int = 0) -> np.ndarray:
    """Stored values ``[count, rows, columns]`` between 0 and 2000."""
    return np.random.default_rng(seed).integers(0, 2000, (count, *SIZE))


def field(lps: np.ndarray) -> np.ndarray:
    """A value for each place ``[..., 3]``, linear, so that linear interpolation gives it exactly; 100 to 1500 here."""
    return 700 + 5 * lps[..., 0] + 3 * lps[..., 1] + 7 * lps[..., 2]


def pixel_places(
    position: np.ndarray, row: np.ndarray = ROW, column: np.ndarray = COLUMN, pixel: Sequence[float] = PIXEL
) -> np.ndarray:
    """Where the pixels of a slice are, ``[rows, columns, 3]``, by the standard's formula (PS3.3, C.7.6.2.1.1)."""
    i, j = np.meshgrid(np.arange(SIZE[0]), np.arange(SIZE[1]), indexing="ij")
    return position + i[..., None] * pixel[0] * column + j[..., None] * pixel[1] * row


def right_affine(
    row: np.ndarray = ROW,
    column: np.ndarray = COLUMN,
    step: Sequence[float] = (0, 0, STEP),
    first: np.ndarray = FIRST,
    pixel: Sequence[float] = PIXEL,
) -> np.ndarray:
    """From (column, row, slice) to RAS mm."""
    affine = np.eye(4)
    affine[:3] = np.stack([row * pixel[1], column * pixel[0], step, first], axis=1)
    return np.diag([-1.0, -1, 1, 1]) @ affine


def image(
    stored: np.ndarray,
    k: int,
    *,
    position: np.ndarray | None = None,
    row: np.ndarray = ROW,
    column: np.ndarray = COLUMN,
    pixel: Sequence[float] = PIXEL,
    slope: float | None = 1,
    intercept: float = -1024,
    signed: bool = False,
    **tags: Any,
) -> Dataset:
    """Slice number `k` of a CT, unless `tags` say another thing."""
    header = Dataset()
    header.file_meta = FileMetaDataset()
    header.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    header.SOPClassUID, header.SOPInstanceUID = tags.pop("SOPClassUID", CT), generate_uid()
    header.file_meta.MediaStorageSOPClassUID = header.SOPClassUID
    header.file_meta.MediaStorageSOPInstanceUID = header.SOPInstanceUID
    header.PatientName, header.PatientID = "Doe^Jane", "HOSP-4711"
    header.StudyInstanceUID, header.SeriesInstanceUID = "1.2.3.1", "1.2.3.4"
    header.Modality, header.InstanceNumber, header.ImageType = "CT", k + 1, ["ORIGINAL", "PRIMARY", "AXIAL"]
    header.ImagePositionPatient = [float(f"{x:.9g}") for x in (place(k) if position is None else position)]
    header.ImageOrientationPatient = [float(f"{x:.9g}") for x in (*row, *column)]
    header.PixelSpacing, header.SliceThickness = list(pixel), STEP
    header.Rows, header.Columns = stored.shape
    header.SamplesPerPixel, header.PhotometricInterpretation = 1, "MONOCHROME2"
    header.BitsAllocated, header.BitsStored, header.HighBit, header.PixelRepresentation = 16, 16, 15, int(signed)
    if slope is not None:
        header.RescaleSlope, header.RescaleIntercept = slope, intercept
    header.PixelData = stored.astype("<i2" if signed else "<u2").tobytes()
    for tag, value in tags.items():
        setattr(header, tag, value)
    return header


def save(images: Sequence[Dataset], folder: Path, name: str = "slice") -> list[str]:
    """Writes each image to a file; the order of the names is not that of the slices."""
    folder.mkdir(parents=True, exist_ok=True)
    files = [str(folder / f"{name}{(7 * k) % len(images):03d}_{k}.dcm") for k in range(len(images))]
    for one, file in zip(images, files):
        one.save_as(file, enforce_file_format=True)
    return files


def enhanced(
    stored: np.ndarray,
    positions: Sequence[np.ndarray],
    *,
    slopes: Sequence[float] | None = None,
    times: Sequence[int] | None = None,
    stacks: Sequence[str] | None = None,
    column: np.ndarray = COLUMN,
) -> Dataset:
    """A multi-frame object, whose geometry and rescaling are in its functional groups; intercept 0."""
    header = image(stored[0], 0, slope=None, SOPClassUID=MR + ".1", Modality="MR")
    for tag in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "SliceThickness"):
        delattr(header, tag)
    header.NumberOfFrames, header.PixelData = len(stored), stored.astype("<u2").tobytes()
    shared = Dataset()
    shared.PixelMeasuresSequence = _item(PixelSpacing=list(PIXEL), SliceThickness=STEP)
    shared.PlaneOrientationSequence = _item(ImageOrientationPatient=[*ROW, *column])
    if slopes is None:
        shared.PixelValueTransformationSequence = _item(RescaleSlope=2, RescaleIntercept=0, RescaleType="US")
    frames = []
    for number, position in enumerate(positions):
        frame, content = Dataset(), {"StackID": stacks[number] if stacks else "1"}
        frame.PlanePositionSequence = _item(ImagePositionPatient=[float(x) for x in position])
        more: dict[str, Any] = {"TemporalPositionIndex": times[number]} if times else {}
        frame.FrameContentSequence = _item(**content, **more)
        if slopes is not None:
            frame.PixelValueTransformationSequence = _item(
                RescaleSlope=float(slopes[number]), RescaleIntercept=float(number), RescaleType="US"
            )
        frames.append(frame)
    header.SharedFunctionalGroupsSequence, header.PerFrameFunctionalGroupsSequence = Items([shared]), Items(frames)
    return header


def _item(**values: Any) -> Items:
    item = Dataset()
    for tag, value in values.items():
        setattr(item, tag, value)
    return Items([item])
