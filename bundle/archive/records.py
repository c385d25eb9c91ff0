# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""What an index keeps of a file. All that could identify a patient is digested with the index's salt."""

from __future__ import annotations

import hashlib
import json
import os
import struct
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bundle.data.dicom.frames import FRAME_TAGS, Frame, frames_from_header
from bundle.data.dicom.headers import quiet_pydicom
from bundle.data.dicom.pixels import unknown_compression
from bundle.data.dicom.slices import DAMAGED, SLICE_TAGS, Slice, place_taken, slice_from_header

if TYPE_CHECKING:
    import pydicom

__all__ = ["COMPRESSED", "POSITION", "Record", "Salt", "SliceRow", "frames_and_slice", "has_delimiter", "whole_record"]

_TAGS = sorted({*SLICE_TAGS, *FRAME_TAGS, "SOPInstanceUID"})
#: how the numbers of a frame are called in the text that slices share
_NUMBERS = ("index", "size", "pixel", "slope", "intercept", "units", "padding", "odd", "modality", "between")
_TEXTS = ("time", "stack", "echo")
POSITION = struct.Struct("<3d")
#: stands for the bytes of compressed pixels: they end with a mark, at which a file may go on with padding
COMPRESSED = -1
_DELIMITER, _TAILS = b"\xfe\xff\xdd\xe0\0\0\0\0", (64, 2**16)
#: what RescaleType and the type of a Modality LUT may say, by the standard's defined terms; another text is digested
_UNITS = ("", "HU", "US", "OD", "HU_MOD", "MGML", "Z_EFF", "ED", "EDW", "PCT", "ETHU")


@dataclass(frozen=True)
class Record:
    """A file, as it is kept.

    Attributes:
        name: of the file in its folder.
        size: in bytes; -1 of a file that could not be opened, so that it is opened again next time.
        changed: time of the last change, in ns.
        kind: slice (an image of a DICOM series of CT or MR), volume (a file that holds one), object (another DICOM
            object), damaged (begins as DICOM, or is called so, and cannot be read), locked (cannot be opened), other.
        series: digest of the series, or of the file of a volume.
        header: json of what slices share, of the volume, or the modality of an object.
        instance: digest of what identifies the image.
        position: of the slice, three numbers; None if they are in the header's json.
        number: InstanceNumber, or None.
    """

    name: bytes
    size: int
    changed: int
    kind: str
    series: bytes | None = None
    header: str | None = None
    instance: bytes | None = None
    position: bytes | None = None
    number: int | None = None

    @property
    def has_fault(self) -> bool:
        """Whether something is wrong with a slice."""
        return self.header is None or bool(json.loads(self.header)["fault"])


class Salt:
    """Digests what identifies a person, a study or an image. Nobody without the salt can check a guess.

    Args:
        key: at most 64 bytes.
    """

    def __init__(self, key: bytes) -> None:
        self.key = key

    def __call__(self, text: str, size: int = 8) -> bytes:
        """So many bytes for a text."""
        return hashlib.blake2b(text.encode(errors="surrogateescape"), key=self.key, digest_size=size).digest()

    def text(self, text: str) -> str:
        """Sixteen hexadecimal digits; "" for ""."""
        return self(text).hex() if text else ""


def whole_record(path: Path, bare: Record, salt: Salt) -> tuple[Record, int]:
    """Decodes the header of a DICOM file as a whole.

    Args:
        path: of the file.
        bare: its record without what the header says.
        salt: of the index.

    Returns:
        The record, and how many bytes the pixels of a slice take at least, or `COMPRESSED`.

    Raises:
        OSError: if the file cannot be read.
    """
    with path.open("rb") as stream:
        try:
            return _from_header(*_read(stream), path, bare, salt)
        except OSError:
            raise
        except Exception:  # noqa: BLE001 - a damaged header raises anything
            return replace(bare, kind="damaged"), 0


def _read(stream: Any) -> tuple[pydicom.FileDataset, int]:
    """The header, and where it ends in the file."""
    header = quiet_pydicom().dcmread(stream, stop_before_pixels=True, force=True, specific_tags=_TAGS)
    return header, stream.tell()


def _from_header(header: pydicom.FileDataset, end: int, path: Path, bare: Record, salt: Salt) -> tuple[Record, int]:
    found = slice_from_header(header, path)
    if found is None:
        return bare, 0
    if found == DAMAGED:
        return replace(bare, kind="damaged"), 0
    if isinstance(found, str):
        return replace(bare, kind="object", header=found), 0
    fault, frames, needed = "", [], 0
    try:
        frames = frames_from_header(header, str(path))
        needed = _pixel_bytes(header, frames)
        fault = _compression(header)
        is_whole = has_delimiter(path, end) if needed == COMPRESSED else bare.size - end >= needed
        if not fault and not is_whole:
            fault = "cannot be read (a file ends before its pixels do)"
    except Exception as error:  # noqa: BLE001 - as above; the series then says what the reader would say
        fault = f"cannot be read ({(str(error).strip().splitlines() or [type(error).__name__])[-1]})"
    alone = frames[0] if len(frames) == 1 and frames[0].place is not None and found.place else None
    is_usual = alone is not None and alone.table is None and tuple(alone.place.ravel()) == found.place  # type: ignore[union-attr]
    shared = {
        "modality": found.modality,
        "study": salt.text(found.study),
        "group": salt.text(found.group),
        "scaling": [salt.text(text) if len(text) > 20 else text for text in found.scaling],
        "place": list(found.place[3:] if is_usual else found.place),
        "frames": [_packed(frame, salt, place=not is_usual) for frame in frames],
        "fault": fault,
    }
    record = replace(
        bare,
        kind="slice",
        series=salt(found.series or os.fsdecode(path.parent)),
        header=json.dumps(shared, separators=(",", ":")),
        instance=salt(found.instance),
        position=POSITION.pack(*found.place[:3]) if is_usual else None,
        number=frames[0].number if frames else None,
    )
    return record, needed


def _packed(frame: Frame, salt: Salt, *, place: bool) -> dict[str, Any]:
    """A frame as json keeps it; texts that only need to be compared are digested."""
    packed: dict[str, Any] = {name: getattr(frame, name) for name in _NUMBERS}
    packed["units"] = frame.units if frame.units in _UNITS else salt.text(frame.units)
    packed |= {name: salt.text(getattr(frame, name)) for name in _TEXTS}
    packed["acquisition"] = salt.text("\n".join(frame.acquisition))
    packed["table"] = frame.table is not None
    if place and frame.place is not None:
        packed["place"] = frame.place.ravel().tolist()
    return packed


def _compression(header: pydicom.FileDataset) -> str:
    syntax = header.file_meta.get("TransferSyntaxUID")
    return "" if syntax is None else unknown_compression(syntax)


def _pixel_bytes(header: pydicom.FileDataset, frames: Sequence[Frame]) -> int:
    """What the pixels take of the file, with what announces them; `COMPRESSED` where that is not known."""
    syntax = header.file_meta.get("TransferSyntaxUID")
    if syntax is None or syntax.is_deflated:  # of the second all is unpacked where the header is read
        return 0
    if syntax.is_compressed:
        return COMPRESSED
    rows, columns = frames[0].size
    values = rows * columns * len(frames) * int(header.get("SamplesPerPixel") or 1)
    announced = 8 if syntax.is_implicit_VR else 12
    return announced + values * int(header.get("BitsAllocated") or 16) // 8


def has_delimiter(path: Path, end: int) -> bool:
    """Whether compressed pixels, which begin after byte `end`, have the mark at their end.

    Raises:
        OSError: if the file cannot be read.
    """
    size = path.stat().st_size
    with path.open("rb") as stream:
        for tail in _TAILS:
            stream.seek(max(end, size - tail))
            if _DELIMITER in stream.read():
                return True
    return False


@dataclass(frozen=True)
class SliceRow:
    """A slice, as it comes from the index.

    Attributes:
        file: that holds it.
        header: json of what it shares with others.
        instance: digest of what identifies the image.
        position: three numbers, or None.
        number: InstanceNumber, or None.
    """

    file: str
    header: str
    instance: bytes
    position: bytes | None
    number: int | None


def frames_and_slice(row: SliceRow) -> tuple[Slice, list[Frame], str]:
    """What grouping and the reader's checks need, and what is wrong with the file, or ""."""
    shared = json.loads(row.header)
    position = [] if row.position is None else list(POSITION.unpack(row.position))
    place, instance = (*position, *shared["place"]), row.instance.hex()
    found = Slice(
        file=Path(row.file),
        series="",
        study=shared["study"],
        instance=instance,
        modality=shared["modality"],
        group=shared["group"],
        place=place,
        taken=place_taken(place, instance),
        scaling=tuple(shared["scaling"]),
    )
    own = np.reshape(place, (3, 3)) if position else None
    return found, [_frame(packed, row, own) for packed in shared["frames"]], shared["fault"]


def _frame(packed: dict[str, Any], row: SliceRow, place: np.ndarray | None) -> Frame:
    values = {name: packed[name] for name in (*_NUMBERS, *_TEXTS)}
    for name in ("size", "pixel", "padding"):
        values[name] = None if values[name] is None else tuple(values[name])
    if "place" in packed:
        place = np.reshape(packed["place"], (3, 3))
    return Frame(
        **values, file=row.file, place=place, number=row.number, acquisition=(packed["acquisition"],), table=None
    )
