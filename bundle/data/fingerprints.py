# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""Recognises a scan's file again, wherever it lies and whatever it is called."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import BinaryIO

import numpy as np

from bundle.data.file_parts import voxel_files
from bundle.data.found_volume import FoundVolume

__all__ = ["fingerprint", "labelled_fingerprint"]

#: bytes that are read: enough of the voxels of a compressed file to tell any two scans apart
_PIECE = 65536
#: pieces that are looked at, where the middle is background, before all of the file is read
_PIECES = 32
#: a piece is background, or of a label map, where more of its bytes repeat the one that is eight before
_PLAIN = 7 / 8


def fingerprint(files: Sequence[str]) -> str:
    """A digest of the size and the middle of a scan's file, or of the middle file of a series.

    Where the middle is background, as in uncompressed scans without skulls, it is another piece that is not; and all
    bytes if there is none. It tells nothing of the scan, but whoever has the same file can recognise it. A scan that
    was converted is another file.

    Args:
        files: of one scan.

    Returns:
        16 hexadecimal digits; "" if the file cannot be read.
    """
    if not files:
        return ""
    try:
        voxels = voxel_files(files[len(files) // 2])
        file = voxels[len(voxels) // 2]
        size = file.stat().st_size
        digest = hashlib.sha256(str(size).encode() + b" ")
        with file.open("rb") as opened:
            for piece in _telling(opened, size):
                digest.update(piece)
    except OSError:
        return ""
    return digest.hexdigest()[:16]


def _telling(opened: BinaryIO, size: int) -> Iterator[bytes]:
    """A piece of a file that tells it from others; all of it if there is none."""
    last = max(0, size - _PIECE)
    for number in range(_PIECES if last else 0):
        # from the middle on, by the golden ratio: no two pieces at the same place of a slice
        opened.seek(int((0.5 + number * 0.618034) % 1 * last))
        piece = opened.read(_PIECE)
        values = np.frombuffer(piece, np.uint8)
        if np.mean(values[8:] == values[:-8]) <= _PLAIN:
            yield piece
            return
    opened.seek(0)
    while piece := opened.read(2**20):
        yield piece


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
