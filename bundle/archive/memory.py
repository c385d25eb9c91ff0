# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""Remembers what the slices of a series share, so that only what differs is decoded of each.

Decoding takes four fifths of the time that pydicom needs for a header. The bytes of the shared attributes are equal in
nearly all files of a series. Where they are, the record of an earlier file is taken, with this file's own position,
number and identity. In all other cases the header is decoded as a whole.
"""

from __future__ import annotations

import io
import math
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from bundle.archive.records import COMPRESSED, POSITION, Record, Salt, has_delimiter
from bundle.data.dicom.frames import FRAME_TAGS
from bundle.data.dicom.slices import SLICE_TAGS

__all__ = ["BYTES", "Memory", "RawHeader", "read_raw"]

#: of a file that are read; a longer header is decoded as a whole
BYTES = 16384
#: series that are remembered
_LARGEST = 2000
_PIXELS = 0x7FE00000
_SERIES, _INSTANCE, _POSITION, _NUMBER, _SYNTAX = 0x0020000E, 0x00080018, 0x00200032, 0x00200013, 0x00020010
_IMPLICIT = b"1.2.840.10008.1.2\0"
#: big endian and deflated headers are decoded as a whole
_NOT_HERE = (b"1.2.840.10008.1.2.2\0", b"1.2.840.10008.1.2.1.99")
#: ModalityLUTSequence, and the functional groups
_SEQUENCES = {0x00283000, 0x52009229, 0x52009230}
_OWN = (_INSTANCE, _POSITION, _NUMBER)


@dataclass(frozen=True)
class RawHeader:
    """The attributes that matter, not decoded.

    Attributes:
        shared: of all slices of a series: numbers of tags, and bytes.
        own: of this slice: by the number of the tag.
        end: where the header ends in the file.
    """

    shared: tuple[tuple[int, bytes], ...]
    own: dict[int, bytes]
    end: int


@dataclass(frozen=True)
class _Known:
    record: Record
    needed: int  # bytes of the pixels, or COMPRESSED


class Memory:
    """Records of earlier files, by the bytes of what slices share."""

    def __init__(self) -> None:
        self._known: dict[tuple[bytes, tuple[tuple[int, bytes], ...]], _Known] = {}

    def recall(self, raw: RawHeader, bare: Record, salt: Salt, path: Path) -> Record | None:
        """The record of a file; None if nothing alike is known, or if anything about the file is unusual.

        Args:
            raw: its header.
            bare: its record without what the header says.
            salt: of the index.
            path: of the file.
        """
        known = self._known.get((salt.key, raw.shared))
        if known is None or bare.size - raw.end < known.needed:
            return None
        if known.needed == COMPRESSED and not has_delimiter(path, raw.end):
            return None
        try:
            position = [float(text) for text in raw.own[_POSITION].split(b"\\")]
            instance = raw.own[_INSTANCE].decode("ascii").rstrip("\0 ")
            number = float(raw.own.get(_NUMBER, b"").decode("ascii").strip("\0 ") or "nan")
        except (KeyError, ValueError):
            return None
        if len(position) != 3 or not all(map(math.isfinite, position)) or not instance or "\\" in instance:
            return None
        if not number.is_integer():
            return None
        return replace(
            known.record,
            name=bare.name,
            size=bare.size,
            changed=bare.changed,
            instance=salt(instance),
            position=POSITION.pack(*position),
            number=int(number),
        )

    def learn(self, raw: RawHeader, record: Record, needed: int, salt: Salt) -> None:
        """Remembers the record of a file that was decoded as a whole, if it is a usual one."""
        if record.kind != "slice" or record.position is None or record.number is None or record.has_fault:
            return
        if not dict(raw.shared).get(_SERIES):
            return
        if len(self._known) >= _LARGEST:
            self._known.clear()
        self._known[salt.key, raw.shared] = _Known(record, needed)


def read_raw(start: bytes) -> RawHeader | None:
    """The attributes of a file that begins with these bytes; None if it needs the whole way."""
    from pydicom.filereader import data_element_generator  # noqa: PLC0415 - needed for DICOM only

    if start[128:132] != b"DICM":
        return None
    stream, ends = io.BytesIO(start), []
    stream.seek(132)

    def is_past(first: int) -> Any:
        def stop(tag: int, vr: str | None, length: int) -> bool:  # noqa: ARG001 - pydicom calls it so
            past = int.__ge__(tag, first)  # pydicom's own comparison takes longer than all the rest
            if past:
                ends.append(tag)
            return past

        return stop

    meta = list(data_element_generator(stream, False, True, is_past(0x00030000), specific_tags=[_SYNTAX]))
    syntax = meta[0].value if len(meta) == 1 and isinstance(meta[0].value, bytes) else b""
    if not syntax or syntax in _NOT_HERE or not ends:
        return None
    ends.clear()
    elements = data_element_generator(
        stream, syntax == _IMPLICIT, True, is_past(_PIXELS), specific_tags=list(_numbers())
    )
    found = [(int(element.tag), element.value) for element in elements]
    if not ends or any(not isinstance(value, bytes) and value is not None for _, value in found):
        return None  # cut off, or with a sequence
    if _SEQUENCES & {tag for tag, _ in found}:
        return None
    shared = tuple((tag, value or b"") for tag, value in found if tag not in _OWN)
    own = {tag: value for tag, value in found if tag in _OWN and value}
    return RawHeader(((_SYNTAX, syntax), *shared), own, stream.tell())


@cache
def _numbers() -> tuple[int, ...]:
    from pydicom.datadict import tag_for_keyword  # noqa: PLC0415 - needed for DICOM only

    return tuple(int(tag_for_keyword(name) or 0) for name in {*SLICE_TAGS, *FRAME_TAGS})
