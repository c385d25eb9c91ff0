# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""The index: files a second at the first start, seconds of the second one, memory."""

from __future__ import annotations

import contextlib
import io
import os
import resource
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
from archive_parts.context import Context
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid
from tqdm import tqdm

from bundle.data import find_scans
from bundle.errors import UserError

__all__ = ["make_archive", "measure", "run"]

_ROOT = Path(__file__).resolve().parents[3]

#: of each slice, in the bytes of its series: they are as long as what is put in their place
_UID, _POSITION, _NUMBER = "1.2.3.9876543210.9876543210", "9876543.210", "987654321"
_SERIES, _SLICES, _EDGE = 1000, 100, 32


def run(context: Context) -> dict[str, Any]:
    """The figures of this part."""
    series = max(1, round(_SERIES * context.scale))
    files = make_archive(context.work / "archive", series=series, slices=_SLICES)
    arguments = [
        *(sys.executable, "-m", "monai.bundle", "run", "--config_file", str(_ROOT / "configs/index.yaml")),
        *("--bundle_root", str(_ROOT), "--dataset_dir", str(context.work / "archive")),
        *("--output_dir", str(context.work / "index"), "--num_workers", str(context.processes), "--sample", "0"),
    ]
    figures: dict[str, Any] = {"files": files, "series": series, "processes": context.processes}
    for name in ("first start", "second start"):
        cost = measure(arguments)
        figures |= {f"{name}, {what}": value for what, value in cost.items()}
    figures["files a second"] = round(files / figures["first start, seconds"])
    figures["files a second of all cores' time"] = round(files / figures["first start, seconds of all cores"])
    figures["index, MB"] = round((context.work / "index/index.sqlite").stat().st_size / 1e6, 1)
    start = time.perf_counter()
    found = find_scans(context.work / "index/index.sqlite")
    figures["list for a training, seconds"] = round(time.perf_counter() - start, 2)
    if len(found) != series or any(volume.left_out[0] for volume in found):
        raise UserError(f"the index lists {len(found)} volumes of {series}: this is a mistake in the index")
    return figures


def measure(arguments: list[str]) -> dict[str, float]:
    """Runs a command: seconds, seconds of all cores, and MB of memory.

    Pages that processes share, as forked ones do, count once in the memory of all processes.
    """
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    environment = {**os.environ, "PYTHONPATH": str(_ROOT)}
    process = subprocess.Popen(arguments, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    largest = [0.0, 0.0]
    reader = threading.Thread(target=lambda: errors.append(process.stderr.read() if process.stderr else b""))
    errors: list[bytes] = []
    reader.start()
    while process.poll() is None:
        memory = [_memory(number) for number in _family(process.pid)]
        largest = [max(largest[0], *(r for r, _ in memory), 0), max(largest[1], sum(p for _, p in memory))]
        time.sleep(0.2)
    seconds = time.perf_counter() - start
    reader.join()
    if process.returncode:
        raise UserError(f"the command ended with {process.returncode}: {errors[0].decode(errors='replace')[-2000:]}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return {
        "seconds": round(seconds, 1),
        "seconds of all cores": round(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, 1),
        "MB of the largest process": round(largest[0], 1),
        "MB of all processes": round(largest[1], 1),
    }


def _family(number: int) -> list[int]:
    """A process and those below it."""
    found = [number]
    for task in Path(f"/proc/{number}/task").glob("*/children"):
        with contextlib.suppress(OSError):
            found += [one for child in task.read_text().split() for one in _family(int(child))]
    return found


def _memory(number: int) -> tuple[float, float]:
    """MB that a process has, and those with shared pages divided by who shares them."""
    with contextlib.suppress(OSError):
        lines = (line.split() for line in Path(f"/proc/{number}/smaps_rollup").read_text().splitlines()[1:])
        values = {words[0]: int(words[1]) / 1e3 for words in lines}
        return values.get("Rss:", 0.0), values.get("Pss:", 0.0)
    return 0.0, 0.0


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
        written = io.BytesIO()
        _header(number).save_as(written, enforce_file_format=True)
        template = written.getvalue()
        for k in range(slices):
            pixels = random.integers(0, 2000, (_EDGE, _EDGE), dtype=np.uint16).tobytes()
            own = {_UID: f"1.2.3.{10**9 + number}.{10**9 + k}", _POSITION: f"{2.5 * k:011.3f}", _NUMBER: f"{k + 1:09d}"}
            content = template[: -len(pixels)] + pixels
            for text, value in own.items():
                content = content.replace(text.encode(), value.encode())
            (place / f"{k:05d}").write_bytes(content)
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
    header.SOPInstanceUID = header.file_meta.MediaStorageSOPInstanceUID = _UID
    header.InstanceNumber, header.ImagePositionPatient = _NUMBER, ["-16", "-16", _POSITION]
    header.PixelData = bytes(2 * _EDGE**2)
    header.WindowCenter, header.WindowWidth = 40, 400
    return header
