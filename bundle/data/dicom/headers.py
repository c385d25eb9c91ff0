# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""The header of a DICOM file, and what is none."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, cast

if TYPE_CHECKING:
    from pydicom import Dataset

__all__ = ["looks_like_dicom", "quiet_pydicom", "read_header"]


def quiet_pydicom() -> ModuleType:
    """pydicom, imported where DICOM is read, which takes invalid values from here on as they are.

    It would warn of each with the value itself, which may name a person.
    """
    import pydicom  # noqa: PLC0415 - needed for DICOM only

    pydicom.config.settings.reading_validation_mode = pydicom.config.IGNORE
    return pydicom


def read_header(file: str | os.PathLike[str], tags: Sequence[str] | None = None) -> Dataset | None:
    """The header of a DICOM file, with or without a preamble; None for any other file.

    Args:
        file: to read; the pixels are not read.
        tags: the only ones to read; None reads all.
    """
    pydicom = quiet_pydicom()
    try:
        with Path(file).open("rb") as stream:
            if not looks_like_dicom(stream.read(132)):
                return None
            stream.seek(0)
            header = pydicom.dcmread(stream, stop_before_pixels=True, force=True, specific_tags=tags)
            return cast("Dataset", header)
    except Exception:  # noqa: BLE001  a damaged header raises anything, and is none
        return None


def looks_like_dicom(start: bytes) -> bool:
    """Whether a file begins as DICOM does, or as an old one without preamble: with an element of group 2 or 8."""
    if start[128:132] == b"DICM":
        return True
    if len(start) < 132:
        return False
    for order in ("little", "big"):
        group, element = int.from_bytes(start[:2], order), int.from_bytes(start[2:4], order)
        known = (group == 2 and element <= 0x0010) or (group == 8 and element <= 0x0018)
        if known and (start[4:6].isalpha() or (order == "little" and int.from_bytes(start[4:8], order) <= 64)):
            return True
    return False
