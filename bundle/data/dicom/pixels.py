# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""The stored values of the images in a DICOM file."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import pydicom

__all__ = ["StoredValues"]

_TAGS = [
    "Rows",
    "Columns",
    "SamplesPerPixel",
    "PhotometricInterpretation",
    "BitsAllocated",
    "BitsStored",
    "HighBit",
    "PixelRepresentation",
    "NumberOfFrames",
    "ExtendedOffsetTable",
    "ExtendedOffsetTableLengths",
    "FloatPixelData",
    "DoubleFloatPixelData",
    "PixelData",
]
_MULTI_FRAME_WORD = "1.2.840.10008.5.1.4.1.1.7.3"


class StoredValues:
    """Reads the images of files, one after the other; the last file stays open, so that a file is read once.

    No rescaling, no inversion of MONOCHROME1: that says how to show an image, not what its values mean.
    """

    def __init__(self) -> None:
        self._file, self._frames = "", np.empty(0)

    def __call__(self, file: str, index: int) -> np.ndarray:
        """Frame `index` of a file, ``[rows, columns]``.

        Raises:
            Exception: of any kind, if the pixels are truncated or damaged.
        """
        if file != self._file:
            self._file, self._frames = file, _decoded(file)
        return self._frames[index]


def _decoded(file: str) -> np.ndarray:
    import pydicom  # noqa: PLC0415 - needed for DICOM only
    from pydicom.uid import ImplicitVRLittleEndian, RLELossless  # noqa: PLC0415

    header = pydicom.dcmread(file, force=True, specific_tags=_TAGS)
    meta = header.file_meta
    if "TransferSyntaxUID" not in meta:  # a file without preamble
        implicit = header.original_encoding[0]
        meta.TransferSyntaxUID = ImplicitVRLittleEndian if implicit else pydicom.uid.ExplicitVRLittleEndian
    syntax = meta.TransferSyntaxUID
    if syntax.is_encapsulated and syntax != RLELossless:
        return _decoded_by_itk(header)
    values = header.pixel_array
    frames = values if int(header.get("NumberOfFrames") or 1) > 1 else values[None]
    return _used_bits(frames, header) if "PixelData" in header else frames


def _used_bits(values: np.ndarray, header: pydicom.Dataset) -> np.ndarray:
    """Without the bits that hold no value: old files keep overlays there."""
    allocated, stored = int(header.BitsAllocated), int(header.get("BitsStored") or header.BitsAllocated)
    if stored >= allocated:
        return values
    shift = int(header.get("HighBit", stored - 1)) + 1 - stored
    bits = values.astype(np.int64) >> max(0, shift) & (2**stored - 1)
    sign = 2 ** (stored - 1)
    used: np.ndarray = (bits ^ sign) - sign if header.get("PixelRepresentation", 0) else bits
    return used


def _decoded_by_itk(header: pydicom.Dataset) -> np.ndarray:
    """Lets ITK decode each frame from a file that has nothing but the pixels: no rescaling, no geometry, no patient."""
    import itk  # noqa: PLC0415 - large, and not needed for NIfTI
    import pydicom  # noqa: PLC0415
    from pydicom.encaps import encapsulate, generate_frames  # noqa: PLC0415

    count = int(header.get("NumberOfFrames") or 1)
    bare = pydicom.Dataset()
    for tag in ("Rows", "Columns", "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation"):
        setattr(bare, tag, header[tag].value)
    bare.SamplesPerPixel, bare.PhotometricInterpretation, bare.NumberOfFrames = 1, "MONOCHROME2", 1
    bare.SOPClassUID, bare.SOPInstanceUID = _MULTI_FRAME_WORD, pydicom.uid.generate_uid()
    bare.file_meta = pydicom.dataset.FileMetaDataset()
    bare.file_meta.TransferSyntaxUID = header.file_meta.TransferSyntaxUID
    bare.file_meta.MediaStorageSOPClassUID = bare.SOPClassUID
    bare.file_meta.MediaStorageSOPInstanceUID = bare.SOPInstanceUID
    frames = []
    with tempfile.TemporaryDirectory() as folder:
        file = str(Path(folder, "frame.dcm"))
        for frame in generate_frames(header.PixelData, number_of_frames=count):
            bare.PixelData = encapsulate([frame])
            bare["PixelData"].is_undefined_length = True
            bare.save_as(file, enforce_file_format=True)
            frames.append(itk.array_from_image(itk.imread(file)).reshape(bare.Rows, bare.Columns))
    return np.stack(frames)
