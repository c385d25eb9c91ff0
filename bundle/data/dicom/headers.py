# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""The header of a DICOM file, and what is none."""

from __future__ import annotations

import logging
import os
import re
import warnings
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, cast

if TYPE_CHECKING:
    from pydicom import FileDataset

__all__ = ["DamagedHeaderError", "looks_like_dicom", "open_header", "quiet_pydicom", "read_header"]

_PREFIX = b"DICM"  # after a preamble of 128 bytes
#: the modules whose warnings are not shown
_PYDICOM = re.compile(r"pydicom\.")


class DamagedHeaderError(ValueError):
    """A file begins as DICOM, and its header cannot be read."""


def quiet_pydicom() -> ModuleType:
    """pydicom, imported where DICOM is read, which takes invalid values from here on as they are.

    It would warn of each with the value itself, and of cut-off pixels with the path, which may name a person. What it
    raises is told by whoever reads.
    """
    import pydicom  # noqa: PLC0415 - needed for DICOM only

    pydicom.config.settings.reading_validation_mode = pydicom.config.IGNORE
    logging.getLogger("pydicom").setLevel(logging.CRITICAL)
    if ("ignore", None, Warning, _PYDICOM, 0) not in warnings.filters:
        warnings.filterwarnings("ignore", module=_PYDICOM.pattern)
    return pydicom


def read_header(file: str | os.PathLike[str], tags: Sequence[str] | None = None) -> FileDataset | None:
    """The header of a DICOM file, with or without a preamble; None for any other file.

    Args:
        file: to read; the pixels are not read.
        tags: the only ones to read; None reads all.
    """
    try:
        return open_header(file, tags)
    except (OSError, DamagedHeaderError):
        return None


def open_header(file: str | os.PathLike[str], tags: Sequence[str] | None = None) -> FileDataset | None:
    """As `read_header`, but tells what cannot be read from what is no DICOM.

    Raises:
        OSError: if the file cannot be opened.
        DamagedHeaderError: if it begins as DICOM does, with a preamble, and its header cannot be read.
    """
    pydicom = quiet_pydicom()
    with Path(file).open("rb") as stream:
        start = stream.read(132)
        if not looks_like_dicom(start):
            return None
        stream.seek(0)
        try:
            header = pydicom.dcmread(stream, stop_before_pixels=True, force=True, specific_tags=tags)
        except Exception as error:  # a damaged header raises anything
            if start[128:] == _PREFIX:
                raise DamagedHeaderError("its header cannot be read") from error
            return None
    return cast("FileDataset", header)


def looks_like_dicom(start: bytes) -> bool:
    """Whether a file begins as DICOM does, or as an old one without preamble: with an element of group 2 or 8."""
    if start[128:132] == _PREFIX:
        return True
    if len(start) < 132:
        return False
    for order in ("little", "big"):
        group, element = int.from_bytes(start[:2], order), int.from_bytes(start[2:4], order)
        known = (group == 2 and element <= 0x0010) or (group == 8 and element <= 0x0018)
        if known and (start[4:6].isalpha() or (order == "little" and int.from_bytes(start[4:8], order) <= 64)):
            return True
    return False
