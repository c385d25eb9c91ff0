# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""The index: files a second at the first start, seconds of the second one, memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from archive_parts.context import Context
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid
from tqdm import tqdm

__all__ = ["make_archive", "run"]

_SERIES, _SLICES, _EDGE = 1000, 100, 32


def run(context: Context) -> dict[str, Any]:
    """The figures of this part."""
    series = max(1, round(_SERIES * context.scale))
    files = make_archive(context.work / "archive", series=series, slices=_SLICES)
    return {"files": files, "series": series}


def make_archive(folder: Path, *, series: int, slices: int, seed: int = 0) -> int:
    """Writes series of small CT slices, four series of a patient, each in a folder of its own.

    Args:
        folder: of the archive.
        series: how many.
        slices: of each series.
        seed: of the pixels.

    Returns:
        The number of files.
    """
    random = np.random.default_rng(seed)
    for number in tqdm(range(series), desc="writing series"):
        place = folder / f"patient{number // 4:05d}" / f"series{number % 4}"
        place.mkdir(parents=True)
        header = _header(number)
        pixels = random.integers(0, 2000, (slices, _EDGE, _EDGE), dtype=np.uint16)
        for k in range(slices):
            header.InstanceNumber, header.ImagePositionPatient = k + 1, [-16, -16, 2.5 * k]
            header.SOPInstanceUID = header.file_meta.MediaStorageSOPInstanceUID = generate_uid()
            header.PixelData = pixels[k].tobytes()
            header.save_as(place / f"{k:05d}", enforce_file_format=True)
    return series * slices


def _header(number: int) -> Dataset:
    """The header of a CT series, with as many attributes as scanners usually write."""
    header = Dataset()
    header.file_meta = FileMetaDataset()
    header.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    header.SOPClassUID = header.file_meta.MediaStorageSOPClassUID = CTImageStorage
    header.PatientName, header.PatientID = f"Doe^{number // 4}", f"P{number // 4:06d}"
    header.PatientBirthDate, header.PatientSex, header.PatientAge = "19500101", "O", "070Y"
    header.StudyInstanceUID, header.SeriesInstanceUID = generate_uid(), generate_uid()
    header.FrameOfReferenceUID, header.AccessionNumber = generate_uid(), f"A{number}"
    header.StudyDate = header.SeriesDate = header.AcquisitionDate = header.ContentDate = "20200101"
    header.StudyTime = header.SeriesTime = header.AcquisitionTime = header.ContentTime = "120000"
    header.Modality, header.ImageType = "CT", ["ORIGINAL", "PRIMARY", "AXIAL"]
    header.Manufacturer, header.ManufacturerModelName = "Example", "Scanner 1"
    header.InstitutionName, header.StationName, header.ReferringPhysicianName = "Hospital", "CT1", "Doe^John"
    header.StudyDescription, header.SeriesDescription, header.ProtocolName = "Chest", "Lung 2.5", "Chest"
    header.BodyPartExamined, header.PatientPosition, header.KVP = "CHEST", "HFS", 120
    header.SliceThickness, header.SpacingBetweenSlices, header.DataCollectionDiameter = 2.5, 2.5, 500
    header.ReconstructionDiameter, header.GantryDetectorTilt, header.TableHeight = 360, 0, 150
    header.RotationDirection, header.ExposureTime, header.XRayTubeCurrent = "CW", 500, 200
    header.Exposure, header.FilterType, header.GeneratorPower = 100, "BODY", 30
    header.ConvolutionKernel, header.SeriesNumber, header.AcquisitionNumber = "B30", 2, 1
    header.ImageOrientationPatient, header.PixelSpacing = [1, 0, 0, 0, 1, 0], [0.8, 0.8]
    header.SamplesPerPixel, header.PhotometricInterpretation = 1, "MONOCHROME2"
    header.Rows = header.Columns = _EDGE
    header.BitsAllocated, header.BitsStored, header.HighBit, header.PixelRepresentation = 16, 16, 15, 0
    header.RescaleSlope, header.RescaleIntercept = 1, -1024
    header.WindowCenter, header.WindowWidth = 40, 400
    return header
