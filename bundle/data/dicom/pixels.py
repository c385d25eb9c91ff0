# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""The stored values of the images in a DICOM file."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from bundle.data.dicom.headers import quiet_pydicom
from bundle.data.dicom.padding import keep_padding

if TYPE_CHECKING:
    import pydicom

__all__ = ["StoredValues", "UnknownCompressionError", "stored_frames", "through_table", "unknown_compression"]

_PIXELS = ("FloatPixelData", "DoubleFloatPixelData", "PixelData")
_TAGS = [
    "Rows",
    "Columns",
    "SamplesPerPixel",
    "PhotometricInterpretation",
    "BitsAllocated",
    "BitsStored",
    "HighBit",
    "PixelRepresentation",
    "PixelPaddingValue",
    "PixelPaddingRangeLimit",
    "NumberOfFrames",
    "ExtendedOffsetTable",
    "ExtendedOffsetTableLengths",
    *_PIXELS,
]
#: transfer syntaxes that ITK decodes: JPEG, JPEG-LS, JPEG 2000, and JPEG 2000 of high throughput
_BY_ITK = tuple(f"1.2.840.10008.1.2.4.{end}" for end in (50, 51, 57, 70, 80, 81, 90, 91, 201, 202, 203))
#: those that keep 8 or 12 bits, whatever else the values had
_LOSSY_JPEG = tuple(f"1.2.840.10008.1.2.4.{end}" for end in (50, 51))
_MULTI_FRAME_WORD = "1.2.840.10008.5.1.4.1.1.7.3"


class UnknownCompressionError(ValueError):
    """Pixels are compressed in a way that no library here decodes."""


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
            self._file, self._frames = file, stored_frames(file)
        return self._frames[index]


def stored_frames(file: str) -> np.ndarray:
    """The images of a file, ``[frames, rows, columns]``; raises as `StoredValues`."""
    from pydicom import uid  # noqa: PLC0415 - needed for DICOM only

    header = quiet_pydicom().dcmread(file, force=True, specific_tags=_TAGS)
    if not any(tag in header for tag in _PIXELS):
        raise ValueError("a file ends before its pixels do")
    meta = header.file_meta
    if "TransferSyntaxUID" not in meta:  # a file without preamble
        is_implicit, is_little = header.original_encoding
        explicit = uid.ExplicitVRLittleEndian if is_little else uid.ExplicitVRBigEndian
        meta.TransferSyntaxUID = uid.ImplicitVRLittleEndian if is_implicit else explicit
    syntax = meta.TransferSyntaxUID
    if syntax in _BY_ITK:
        return _used_bits(_decoded_by_itk(header), header)
    if reason := unknown_compression(syntax):
        raise UnknownCompressionError(reason)
    header.pixel_array_options(correct_unused_bits=False)  # the used ones may be the highest
    values = header.pixel_array
    frames = values if int(header.get("NumberOfFrames") or 1) > 1 else values[None]
    return _used_bits(frames, header) if "PixelData" in header else frames


def unknown_compression(syntax: pydicom.uid.UID) -> str:
    """Why the pixels of a transfer syntax cannot be decoded; "" if they can."""
    from pydicom.uid import RLELossless  # noqa: PLC0415 - needed for DICOM only

    if not syntax.is_encapsulated or syntax == RLELossless or syntax in _BY_ITK:
        return ""
    return f"is compressed as {syntax.name}, which cannot be decoded here"


def through_table(stored: np.ndarray, header: pydicom.Dataset) -> np.ndarray:
    """Stored values through the Modality LUT of their file's header."""
    from pydicom.pixels import apply_modality_lut  # noqa: PLC0415 - needed for DICOM only

    table = header.ModalityLUTSequence[0]
    count, first, bits = table.LUTDescriptor
    table.LUTDescriptor = [count, first, 8 if bits <= 8 else 16]  # pydicom knows whole bytes only
    # wide enough for a first entry that is below every stored value
    meant: np.ndarray = apply_modality_lut(stored.astype(np.int64), header)
    return meant


def _used_bits(values: np.ndarray, header: pydicom.Dataset) -> np.ndarray:
    """Without the bits that hold no value: old files keep overlays there."""
    allocated, stored = int(header.BitsAllocated), int(header.get("BitsStored") or header.BitsAllocated)
    if stored >= allocated:
        return values
    shift = int(header.get("HighBit", stored - 1)) + 1 - stored
    bits = values.astype(np.int64) >> max(0, shift) & (2**stored - 1)
    sign = 2 ** (stored - 1)
    used: np.ndarray = (bits ^ sign) - sign if header.get("PixelRepresentation", 0) else bits
    return keep_padding(used, values, header)


def _decoded_by_itk(header: pydicom.Dataset) -> np.ndarray:
    """All bits of the frames, decoded by ITK from files with nothing else: no rescaling, no geometry, no patient."""
    import itk  # noqa: PLC0415 - large, and not needed for NIfTI
    import pydicom  # noqa: PLC0415
    from pydicom.encaps import encapsulate, generate_frames  # noqa: PLC0415

    count = int(header.get("NumberOfFrames") or 1)
    bare = pydicom.Dataset()
    for tag in ("Rows", "Columns", "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation"):
        setattr(bare, tag, header[tag].value)
    if header.file_meta.TransferSyntaxUID not in _LOSSY_JPEG:  # all bits: padding may need more than values do
        bare.BitsStored, bare.HighBit = bare.BitsAllocated, bare.BitsAllocated - 1
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
