# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""Whether a file ends before its voxels do, told from its length or the end of its gzip stream, if that can be."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path

__all__ = ["check_end", "check_length", "ends_as_gzip"]

_GZIP, _CHUNK = b"\x1f\x8b", 2**20
#: bytes that may follow the voxels, as the tags of a FreeSurfer file do
_MORE = 2**16


def check_end(file: Path, needed: int) -> None:
    """Checks that a file, unpacked if it is one of gzip, has the bytes that its header promises.

    A gzip stream ends with the number of its bytes. If that is not the expected one, the file was cut off, or it has
    several streams one after another, as those of bgzip do. It is then read as a whole.

    Args:
        file: plain or of gzip.
        needed: bytes up to the last voxel.

    Raises:
        ValueError: if it ends too early; or what gzip raises of a damaged file.
    """
    with file.open("rb") as stream:
        packed = stream.read(2) == _GZIP
    if not packed:
        check_length(file, needed)
    elif not ends_as_gzip(file, needed):
        with gzip.open(file) as unpacked:
            size = 0
            while part := unpacked.read(_CHUNK):
                size += len(part)
        _compare(size, needed)


def check_length(file: Path, needed: int) -> None:
    """Raises a `ValueError` if a file has fewer bytes than needed."""
    _compare(file.stat().st_size, needed)


def ends_as_gzip(file: Path, needed: int) -> bool:
    """Whether a file ends as a gzip stream of so many bytes does, or of little more.

    One that was cut off does so with a chance of 1 in 65,536.
    """
    with file.open("rb") as stream:
        stream.seek(-4, 2)
        (size,) = struct.unpack("<I", stream.read(4))  # modulo 2**32
    return (size - needed) % 2**32 < _MORE


def _compare(size: int, needed: int) -> None:
    if size < needed:
        raise ValueError(f"ends after {size} of {needed} bytes")
