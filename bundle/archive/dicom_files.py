# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""What an index keeps of a file that may be DICOM."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

from bundle.archive.memory import BYTES, Memory, RawHeader, read_raw
from bundle.archive.records import Record, Salt, whole_record
from bundle.data.dicom.headers import looks_like_dicom
from bundle.data.dicom.slices import is_damaged_by_name, is_of_another_kind

__all__ = ["dicom_record"]

#: of this process
_memory = Memory()


def dicom_record(path: Path, stamp: tuple[int, int], salt: Salt, memory: Memory | None = _memory) -> Record:
    """Reads the header of a file that may be DICOM.

    Args:
        path: of the file.
        stamp: its size and time of change.
        salt: of the index.
        memory: of what earlier files have shared; None decodes every header as a whole.

    Raises:
        OSError: if the file cannot be read.
    """
    bare = Record(os.fsencode(path.name), *stamp, "other")
    if is_of_another_kind(path.name):
        return bare
    with path.open("rb") as stream:
        start = stream.read(BYTES)
    if not looks_like_dicom(start[:132]):
        return replace(bare, kind="damaged") if is_damaged_by_name(path) else bare
    raw = None if memory is None else _raw(start)
    if memory is None or raw is None:
        return whole_record(path, bare, salt)[0]
    known = memory.recall(raw, bare, salt, path)
    if known is not None:
        return known
    record, needed = whole_record(path, bare, salt)
    memory.learn(raw, record, needed, salt)
    return record


def _raw(start: bytes) -> RawHeader | None:
    try:
        return read_raw(start)
    except Exception:  # noqa: BLE001 - a damaged header raises anything; decoding it says what to make of it
        return None
