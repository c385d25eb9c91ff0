# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""From the slices that an index has of one series to its volumes, and whether they can be used."""

from __future__ import annotations

import hashlib
import json
import os
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from bundle.archive.records import SliceRow, frames_and_slice
from bundle.data.dataset_json import modality_named
from bundle.data.dicom.folders import Series, join_folders
from bundle.data.dicom.frames import Frame, read_all_frames
from bundle.data.dicom.headers import quiet_pydicom
from bundle.data.dicom.pixels import StoredValues
from bundle.data.dicom.series import arrange
from bundle.data.file_parts import all_files
from bundle.data.sanity import check_affine
from bundle.errors import VolumeError

__all__ = ["SeriesTask", "Volume", "file_volume", "series_volumes", "whole_content"]

_PIXELS = ("PixelData", "FloatPixelData", "DoubleFloatPixelData")
#: how their bits become values; the modality's table is a sequence
_READ_BY = ("BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation", "ModalityLUTSequence")


@dataclass(frozen=True)
class SeriesTask:
    """A series to group.

    Attributes:
        series: its digest.
        root: of the archive.
        rows: its slices.
    """

    series: bytes
    root: str
    rows: tuple[SliceRow, ...]


@dataclass
class Volume:
    """A volume as the index keeps it; what the fields mean is said in docs/how-to/archive.md."""

    series: bytes
    folder: str
    files: tuple[str, ...]
    format: str
    modality: str = ""
    patient: str = ""
    shape: tuple[int, ...] | None = None
    spacing: tuple[float, ...] | None = None
    channels: int = 1
    fault: str = ""
    remedy: str = ""
    notes: Sequence[str] = field(default_factory=tuple)
    content: str = ""
    bytes: int = 0


def series_volumes(task: SeriesTask) -> list[Volume]:
    """The volumes of a series, checked as the reader checks them, without their pixels.

    Pixels are read where two slices have one place, and of one slice, for the digest of the volume's content.
    """
    frames: dict[str, list[Frame]] = {}
    faults: dict[str, str] = {}
    folders: dict[Path, list[Any]] = defaultdict(list)
    for row in task.rows:
        found, frames[row.file], fault = frames_and_slice(row)
        folders[found.file.parent].append(found)
        if fault:
            faults[row.file] = fault
    return [_volume(task, series, frames, faults) for series in join_folders(folders)]


def _volume(task: SeriesTask, series: Series, frames: dict[str, list[Frame]], faults: dict[str, str]) -> Volume:
    volume = Volume(
        series=task.series,
        folder=os.path.relpath(series.folder, task.root),
        files=series.files,
        format="DICOM",
        modality=modality_named(series.modality),
        patient=series.group,
    )
    if (left_out := series.copied_from(Path(task.root))) is not None:
        volume.fault, volume.remedy = left_out
        return volume
    if broken := [faults[file] for file in series.files if file in faults]:
        more = f", as do {len(broken) - 1} other files" if len(broken) > 1 else ""
        volume.fault, volume.remedy = f"{broken[0]}{more}", "copy it again or leave it out"
        return volume
    try:
        _arrange(volume, [frame for file in series.files for frame in frames[file]])
    except VolumeError as error:
        volume.fault, volume.remedy = error.problem, error.remedy
    except Exception as error:  # noqa: BLE001 - a damaged header raises anything
        reason = (str(error).strip().splitlines() or [type(error).__name__])[-1]
        volume.fault, volume.remedy = f"cannot be read ({reason})", "copy it again or leave it out"
    return volume


def _arrange(volume: Volume, frames: list[Frame]) -> None:
    places = {(*frame.place[0].round(3), frame.time) for frame in frames if frame.place is not None}
    if len(places) < len(frames):  # copies, perhaps: they are compared with their tables, which the index lacks
        frames = list(read_all_frames(list(volume.files)))
    slices = arrange(frames, "", StoredValues())
    affine = slices.grid.affine
    check_affine(affine, slices.shape, "")
    volume.shape, volume.notes = slices.shape, slices.notes
    volume.spacing = tuple(float(value) for value in np.linalg.norm(affine[:3, :3], axis=0))
    middle = slices.frames[len(slices.frames) // 2]
    stored = (slices.shape, middle.index, volume.modality, affine[:3, :3].round(3).tolist(), _scales(slices.frames))
    volume.content = _digest([_pixels(middle.file), str(stored).encode()])


def _scales(frames: list[Frame]) -> list[tuple[float, float, tuple[float, float] | None]]:
    """How stored values are made values, frame by frame."""
    return [(frame.slope, frame.intercept, frame.padding) for frame in frames]


def file_volume(series: bytes, root: str, file: str, header: str) -> Volume:
    """The volume of a file, from what the index keeps of it."""
    known = json.loads(header)
    return Volume(
        series=series,
        folder=os.path.relpath(Path(file).parent, root),
        files=(file,),
        format=known["format"],
        shape=known["shape"] and tuple(known["shape"]),
        spacing=known["spacing"] and tuple(known["spacing"]),
        channels=known["channels"],
        fault=known["fault"],
        remedy=known["remedy"],
        notes=known["notes"],
        content=known["content"],
    )


def whole_content(files: Sequence[str]) -> str:
    """A digest of the pixels of a series' files in order, or of all bytes of a volume's files; "" if one is damaged."""
    try:
        if len(files) > 1:
            return _digest([_pixels(file) for file in files])
        digest = hashlib.blake2b(digest_size=16)
        for file in all_files(files[0]):
            with file.open("rb") as stream:
                while part := stream.read(2**20):
                    digest.update(part)
    except Exception:  # noqa: BLE001 - readers raise anything on a broken file
        return ""
    return digest.hexdigest()


def _pixels(file: str) -> bytes:
    """A digest of the pixels of a file, and of what makes values of them beside slope and intercept."""
    header = quiet_pydicom().dcmread(file, force=True, specific_tags=[*_PIXELS, *_READ_BY])
    digest = hashlib.blake2b(digest_size=16)
    for tag in _PIXELS:
        digest.update(header.get(tag) or b"")
    tables = [(list(table.get("LUTDescriptor", ())), table.get("LUTData")) for table in header.get(_READ_BY[-1]) or ()]
    digest.update(repr(([header.get(tag) for tag in _READ_BY[:-1]], tables)).encode())
    return digest.digest()


def _digest(parts: Sequence[bytes]) -> str:
    return hashlib.blake2b(b"".join(parts), digest_size=16).hexdigest()
