# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""Recognises a scan's file again, wherever it lies and whatever it is called."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from bundle.data.found_volume import FoundVolume

__all__ = ["fingerprint", "labelled_fingerprint"]

#: bytes that are read: enough of the voxels of a compressed file to tell any two scans apart
_PIECE = 65536


def fingerprint(files: Sequence[str]) -> str:
    """A digest of the size and the middle of a scan's file, or of the middle file of a series.

    It tells nothing of the scan, but whoever has the same file can recognise it. A scan that was converted is another
    file.

    Args:
        files: of one scan.

    Returns:
        16 hexadecimal digits; "" if the file cannot be read.
    """
    if not files:
        return ""
    file = Path(files[len(files) // 2])
    try:
        size = file.stat().st_size
        with file.open("rb") as opened:
            opened.seek(max(0, (size - _PIECE) // 2))
            piece = opened.read(_PIECE)
    except OSError:
        return ""
    return hashlib.sha256(str(size).encode() + b" " + piece).hexdigest()[:16]


def labelled_fingerprint(scan: FoundVolume) -> str:
    """A digest of all images of a scan and of its labels, files or not, wherever they lie.

    Returns:
        16 hexadecimal digits; of a file that cannot be read it tells nothing.
    """
    told = [scan.modality, fingerprint(scan.files), *map(fingerprint, scan.channels)]
    for key, value in sorted(scan.annotations.items()):
        values = value.items() if isinstance(value, Mapping) else [(key, value)]
        told += [f"{name} {fingerprint([one]) if isinstance(one, str) else repr(one)}" for name, one in values]
    return hashlib.sha256(json.dumps(told).encode()).hexdigest()[:16]
