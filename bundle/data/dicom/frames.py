# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""What the headers say of each image of a series: where it is, and what its stored values mean."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from bundle.data.dicom.headers import read_header
from bundle.data.dicom.padding import padding_range

if TYPE_CHECKING:
    import pydicom

__all__ = ["FRAME_TAGS", "Frame", "frames_from_header", "read_all_frames", "read_frames"]

#: what `frames_from_header` reads
FRAME_TAGS = [
    "SOPClassUID",
    "ImageType",
    "Modality",
    "ImagePositionPatient",
    "ImageOrientationPatient",
    "PixelSpacing",
    "Rows",
    "Columns",
    "SamplesPerPixel",
    "PhotometricInterpretation",
    "NumberOfFrames",
    "BitsAllocated",
    "PixelRepresentation",
    "RescaleSlope",
    "RescaleIntercept",
    "RescaleType",
    "ModalityLUTSequence",
    "InstanceNumber",
    "AcquisitionNumber",
    "EchoNumbers",
    "SpacingBetweenSlices",
    "PixelPaddingValue",
    "PixelPaddingRangeLimit",
    "TemporalPositionIdentifier",
    "SharedFunctionalGroupsSequence",
    "PerFrameFunctionalGroupsSequence",
]
_SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"
#: values of ImageType by what they make of an image
_ODD_KINDS = {"LOCALIZER": "a localizer", "SCREEN SAVE": "a screen save", "MOSAIC": "a mosaic of slices"}


@dataclass(frozen=True)
class Frame:
    """One image: a file, or a frame of a multi-frame file.

    Attributes:
        file: that holds it.
        index: of the frame in the file, from 0.
        size: rows and columns.
        place: position (LPS mm), direction of a row and of a column, ``[3, 3]``; None if the header has none.
        pixel: mm between rows and between columns; None if the header has none.
        slope: rescaled value = stored value * slope + intercept.
        intercept: see slope.
        units: RescaleType, or "".
        padding: lowest and highest stored value of padding, or None.
        time: temporal position, or "".
        stack: the stack of a multi-frame file, or "".
        odd: what makes it no slice of a volume ("a localizer", ...), or "".
        modality: "CT", "MR" or "".
        number: InstanceNumber of a file with one image, or None.
        echo: number of the echo, or "".
        acquisition: what the slices of one acquisition share: its number, echo and kind of image.
        between: mm between slices, as the header says, or None.
        table: the header with a Modality LUT, which then stands for slope and intercept; else None.
    """

    file: str
    index: int
    size: tuple[int, int]
    place: np.ndarray | None
    pixel: tuple[float, float] | None
    slope: float
    intercept: float
    units: str
    padding: tuple[float, float] | None
    time: str
    stack: str
    odd: str
    modality: str
    number: int | None = None
    echo: str = ""
    acquisition: tuple[str, ...] = ()
    between: float | None = None
    table: pydicom.Dataset | None = field(default=None, repr=False)


def read_frames(file: str) -> list[Frame]:
    """The images of a DICOM file, without their pixels.

    Raises:
        ValueError: if it is no DICOM image.
    """
    header = read_header(file, FRAME_TAGS)
    if header is None or "Rows" not in header:
        raise ValueError("is no DICOM image")
    return frames_from_header(header, file)


def frames_from_header(header: pydicom.Dataset, file: str) -> list[Frame]:
    """The images that a header describes.

    Args:
        header: of a DICOM image.
        file: that it is of.

    Raises:
        ValueError: if it describes another number of images than it says; other errors if it is damaged.
    """
    count = int(header.get("NumberOfFrames") or 1)
    shared = _items(header, "SharedFunctionalGroupsSequence")
    each = _items(header, "PerFrameFunctionalGroupsSequence")
    if not shared and not each:
        alone = [_frame(file, 0, header, [header])]
        # without functional groups nothing says where the frames are
        return alone if count == 1 else [_frame(file, i, header, []) for i in range(count)]
    if each and len(each) != count:
        raise ValueError(f"has {count} frames, but describes {len(each)}")
    return [_frame(file, i, header, [*each[i : i + 1], *shared[:1], header]) for i in range(count)]


def _frame(file: str, index: int, header: pydicom.Dataset, groups: list[pydicom.Dataset]) -> Frame:
    position = _first(groups, "PlanePositionSequence", "ImagePositionPatient")
    orientation = _first(groups, "PlaneOrientationSequence", "ImageOrientationPatient")
    pixel = _first(groups, "PixelMeasuresSequence", "PixelSpacing")
    transform = "PixelValueTransformationSequence"
    slope, intercept = _first(groups, transform, "RescaleSlope"), _first(groups, transform, "RescaleIntercept")
    return Frame(
        file=file,
        index=index,
        size=(int(header.Rows), int(header.Columns)),
        place=_place(position, orientation),
        pixel=_pair(pixel),
        slope=1.0 if slope in (None, "") else float(slope),
        intercept=0.0 if intercept in (None, "") else float(intercept),
        units=_units(header, groups),
        padding=padding_range(header),
        time=_time(groups),
        stack=str(_first(groups, "FrameContentSequence", "StackID") or ""),
        odd=_odd(header, groups),
        modality={"CT": "CT", "MR": "MR"}.get(str(header.get("Modality") or ""), ""),
        number=_whole(header.get("InstanceNumber")) if "NumberOfFrames" not in header else None,
        echo=str(header.get("EchoNumbers") or ""),
        acquisition=(
            *(str(header.get(tag) or "") for tag in ("AcquisitionNumber", "EchoNumbers")),
            *(str(kind).upper() for kind in header.get("ImageType") or []),
        ),
        between=_number(_first(groups, "PixelMeasuresSequence", "SpacingBetweenSlices")),
        table=header if header.get("ModalityLUTSequence") else None,
    )


def _units(header: pydicom.Dataset, groups: list[pydicom.Dataset]) -> str:
    for table in _items(header, "ModalityLUTSequence"):
        return str(table.get("ModalityLUTType") or "").upper()
    return str(_first(groups, "PixelValueTransformationSequence", "RescaleType") or "").upper()


def _number(value: Any) -> float | None:
    try:
        return float(value)
    except (TypeError, ValueError):
        return None


def _whole(value: Any) -> int | None:
    number = _number(value)
    return None if number is None or number != round(number) else int(number)


def _time(groups: list[pydicom.Dataset]) -> str:
    classic = _first(groups, "FrameContentSequence", "TemporalPositionIdentifier")
    return str(_first(groups, "FrameContentSequence", "TemporalPositionIndex") or classic or "")


def _first(groups: list[pydicom.Dataset], sequence: str, tag: str) -> Any:
    """A value from the first group that has it: the frame's, the shared one, or the file's own header."""
    for group in groups:
        for item in (*_items(group, sequence), group):
            if item.get(tag) is not None:
                return item.get(tag)
    return None


def _items(header: pydicom.Dataset, tag: str) -> list[pydicom.Dataset]:
    return list(header.get(tag) or [])


def _place(position: Any, orientation: Any) -> np.ndarray | None:
    if position is None or orientation is None or len(position) != 3 or len(orientation) != 6:
        return None
    place = np.array([*position, *orientation], dtype=np.float64).reshape(3, 3)
    return place if np.isfinite(place).all() else None


def _pair(pixel: Any) -> tuple[float, float] | None:
    values = [] if pixel is None else [float(value) for value in pixel]
    return (values[0], values[1]) if len(values) == 2 and min(values) > 0 else None


def _odd(header: pydicom.Dataset, groups: list[pydicom.Dataset]) -> str:
    kinds = [str(kind).upper() for kind in header.get("ImageType") or []]
    has_palette = str(header.get("PhotometricInterpretation") or "").startswith("PALETTE")
    if has_palette or int(header.get("SamplesPerPixel") or 1) > 1:
        return "in colour"
    if found := [odd for kind, odd in _ODD_KINDS.items() if kind in kinds]:
        return found[0]
    if str(header.get("SOPClassUID") or "").startswith(_SECONDARY_CAPTURE):
        return "a screen save"
    return "" if groups else "without a position"


def read_all_frames(files: list[str]) -> Iterator[Frame]:
    """The images of several files."""
    for file in files:
        yield from read_frames(file)
