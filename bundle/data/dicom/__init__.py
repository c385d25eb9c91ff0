# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""DICOM: which files are the slices of one series, and the volume that they hold.

pydicom reads the headers, and the pixels that are not compressed; ITK decodes the others. Geometry and rescaling are
ours: ITK takes both from the first slice. highdicom's volumes refuse what is tilted or unevenly spaced, and it would
bring Pillow and a decoder for JPEG-LS, which ITK has. It writes DICOM SEG, an extra.
"""

from bundle.data.dicom.folders import COPIES_OF, Series, find_dicom, find_series, numbered
from bundle.data.dicom.frames import Frame
from bundle.data.dicom.headers import read_header
from bundle.data.dicom.pixels import UnknownCompressionError
from bundle.data.dicom.series import DicomVolume, read_series
from bundle.data.dicom.slices import DAMAGED, UNREADABLE
from bundle.data.dicom.sources import frames_on_grid

__all__ = [
    "COPIES_OF",
    "DAMAGED",
    "UNREADABLE",
    "DicomVolume",
    "Frame",
    "Series",
    "UnknownCompressionError",
    "find_dicom",
    "find_series",
    "frames_on_grid",
    "numbered",
    "read_header",
    "read_series",
]
