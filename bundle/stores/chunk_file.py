# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""A file of compressed arrays, of which any part can be read, and in which no bit can change unseen.

The file begins with 24 bytes: a mark, its own length, the length of the header, and a checksum of these and of the
header. The header is json. It tells the place of every array. An array begins with an index, 8 bytes for each of its
chunks: compressed length and checksum. The header has the checksum of the index. The chunks follow, the last axis
fastest. A chunk of one value has no bytes: its index entry has length 0 and the value in place of the checksum.
"""

from __future__ import annotations

import itertools
import json
import math
import os
import struct
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

__all__ = ["ChunkFile", "DamagedFileError", "write_chunk_file"]

_START, _MARK = struct.Struct("<8sQII"), b"MIMVOL01"
_ENTRY = np.dtype([("length", "<u4"), ("check", "<u4")])
#: voxels of a chunk on each axis: small ones cost time for each, of large ones a crop reads more that it does not use
_CHUNK, _CHUNK_OF_BITS = 24, 48


class DamagedFileError(Exception):
    """A file is not as it was written."""


def write_chunk_file(stream: BinaryIO, arrays: Mapping[str, np.ndarray], facts: Mapping[str, Any]) -> None:
    """Writes arrays.

    Args:
        stream: to write to.
        arrays: three axes are cut into chunks, any other number of axes is one chunk. An array of bool is packed to
            bits.
        facts: what json can hold; it comes with the header.
    """
    places: dict[str, Any] = {}
    parts: list[bytes] = []
    start = 0
    for name, array in arrays.items():
        index, chunks = _compress_all(array)
        places[name] = {
            "dtype": str(array.dtype),
            "shape": array.shape,
            "chunk": _chunk_shape(array),
            "start": start,
            "check": zlib.crc32(index),
        }
        parts += [index, *chunks]
        start += len(index) + sum(map(len, chunks))
    header = json.dumps({"facts": dict(facts), "arrays": places}, separators=(",", ":")).encode()
    size = _START.size + len(header) + start
    begin = _START.pack(_MARK, size, len(header), 0)[:-4]
    stream.write(begin + struct.pack("<I", zlib.crc32(begin + header)) + header)
    stream.writelines(parts)


def _compress_all(array: np.ndarray) -> tuple[bytes, list[bytes]]:
    chunk = _chunk_shape(array)
    counts = _counts(array.shape, chunk)
    index, chunks = np.zeros(math.prod(counts), _ENTRY), []
    for number, place in enumerate(itertools.product(*map(range, counts))):
        where = tuple(slice(p * c, (p + 1) * c) for p, c in zip(place, chunk))
        part = np.ascontiguousarray(array[where])
        if part.ndim == 3 and part.itemsize <= 4 and _is_constant(part):
            index[number] = 0, int.from_bytes(part.reshape(-1)[:1].tobytes(), "little")
            continue
        packed = _compress(part)
        index[number] = len(packed), zlib.crc32(packed)
        chunks.append(packed)
    return index.tobytes(), chunks


def _is_constant(part: np.ndarray) -> bool:
    flat = part.reshape(-1)
    # the two ends first: they differ in nearly every chunk that is not constant
    return bool(flat.size and flat[0] == flat[-1] and (flat == flat[0]).all())


def _compress(part: np.ndarray) -> bytes:
    import blosc2  # noqa: PLC0415 - a third of a second, which other stores need not spend

    part = np.packbits(part) if part.dtype == bool else part
    if not part.size:
        return b"\0"
    # shuffled bytes and LZ4: as small as bits and Zstandard on scans, and read five times as fast
    packed: bytes = blosc2.compress2(
        part,
        codec=blosc2.Codec.LZ4HC,
        clevel=5,
        filters=[blosc2.Filter.SHUFFLE],
        filters_meta=[0],
        typesize=part.itemsize,
        blocksize=min(part.nbytes, 2**18),
        nthreads=1,  # no threads that a fork would lose
    )
    return packed


def _chunk_shape(array: np.ndarray) -> tuple[int, ...]:
    if array.ndim != 3:
        return array.shape
    return ((_CHUNK_OF_BITS if array.dtype == bool else _CHUNK),) * 3


def _counts(shape: Sequence[int], chunk: Sequence[int]) -> tuple[int, ...]:
    """Number of chunks on each axis."""
    return tuple(-(-size // max(1, c)) or 1 for size, c in zip(shape, chunk))


class ChunkFile:
    """A file of `write_chunk_file`, opened to read from. It is not mapped into memory, and keeps no threads.

    Every byte that is read is compared with its checksum.

    Args:
        path: of the file.
        kept: where chunks are kept that were read, for whoever reads neighbouring places of one file; None keeps none.

    Attributes:
        facts: that it was written with.
        names: of its arrays.
        bytes_read: so far.

    Raises:
        DamagedFileError: here or later, if the file is not as it was written.
        FileNotFoundError: if there is none.
    """

    def __init__(self, path: Path, kept: dict[tuple[str, int], Any] | None = None) -> None:
        self.path, self.bytes_read, self._kept = path, 0, kept
        self._file = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0))
        try:
            if hasattr(os, "posix_fadvise"):  # the system would read ahead what no crop asks for
                os.posix_fadvise(self._file, 0, 0, os.POSIX_FADV_RANDOM)
            header = self._read_header()
        except BaseException:
            os.close(self._file)
            raise
        self.facts: dict[str, Any] = header["facts"]
        self._arrays: dict[str, Any] = header["arrays"]
        self.names = list(self._arrays)
        self._indices: dict[str, tuple[np.ndarray, np.ndarray]] = {}

    def close(self) -> None:
        """Closes the file."""
        os.close(self._file)

    def _bytes(self, start: int, length: int) -> bytes:
        parts = []
        while length > 0 and (part := os.pread(self._file, length, start)):
            parts.append(part)
            start, length = start + len(part), length - len(part)
            self.bytes_read += len(part)
        if length > 0:
            raise DamagedFileError("it is shorter than it was")
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _read_header(self) -> dict[str, Any]:
        size = os.fstat(self._file).st_size
        first = self._bytes(0, min(size, 4096))
        if len(first) < _START.size:
            raise DamagedFileError("it is shorter than it was")
        mark, length, header_length, check = _START.unpack_from(first)
        self._data = _START.size + header_length
        if mark != _MARK or length != size or self._data > size:
            raise DamagedFileError("its beginning is not as it was written")
        if self._data > len(first):
            first += self._bytes(len(first), self._data - len(first))
        text = first[_START.size : self._data]
        if zlib.crc32(first[: _START.size - 4] + text) != check:
            raise DamagedFileError("its header is not as it was written")
        header: dict[str, Any] = json.loads(text)
        return header

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of an array."""
        return tuple(self._arrays[name]["shape"])

    def verify(self) -> None:
        """Reads all chunks and compares them with their checksums; nothing is decompressed."""
        end = self._data
        for name, array in self._arrays.items():
            index, starts = self._index(name)
            if self._data + array["start"] != end:
                raise DamagedFileError("its arrays are not where they were")
            for number in np.flatnonzero(index["length"]):
                self._chunk(index, starts, int(number))
            end = int(starts[-1])
        if end != os.fstat(self._file).st_size:
            raise DamagedFileError("it has another length")

    def read(self, name: str, crop: Sequence[slice] | None = None, table: np.ndarray | None = None) -> np.ndarray:
        """An array, or the part of it in a crop; of three axes only the chunks that the crop touches are read.

        Args:
            name: of the array.
            crop: a slice from a start to a stop for each axis; None reads the whole array.
            table: whose values to give instead of their numbers, of an array of three axes.
        """
        array, shape = self._arrays[name], self.shape(name)
        dtype, chunk = np.dtype(array["dtype"]), tuple(array["chunk"])
        if len(shape) != 3:
            index, starts = self._index(name)
            return _decompress(self._chunk(index, starts, 0), shape, dtype)
        axes = [_overlaps(*part) for part in zip(shape, chunk, crop or (slice(None),) * 3)]
        size = [sum(outside.stop - outside.start for *_, outside in axis) for axis in axes]
        result = np.empty(size, dtype if table is None else table.dtype)
        if result.size:
            counts = _counts(shape, chunk)
            for d, h in itertools.product(axes[0], axes[1]):
                row = (d[0] * counts[1] + h[0]) * counts[2]
                for w, value in zip(axes[2], self._row(name, row, d[1] * h[1], axes[2], dtype)):
                    whole = isinstance(value, np.ndarray)
                    inside = value.reshape(d[1], h[1], w[1])[d[2], h[2], w[2]] if whole else value
                    # chunk by chunk: a crop of numbers beside the crop of values would double the time
                    result[d[3], h[3], w[3]] = inside if table is None else table.take(inside)
        return result

    def _row(self, name: str, row: int, lines: int, axis: Sequence[_Overlap], dtype: np.dtype[Any]) -> Iterable[Any]:
        """The voxels of neighbouring chunks; the one value of a chunk that has one only."""
        if self._kept is None:
            return self._read_row(name, row, lines, axis, dtype)
        keys = [(name, row + number) for number, *_ in axis]
        if any(key not in self._kept for key in keys):
            self._kept.update(zip(keys, self._read_row(name, row, lines, axis, dtype)))
        return [self._kept[key] for key in keys]

    def _read_row(
        self, name: str, row: int, lines: int, axis: Sequence[_Overlap], dtype: np.dtype[Any]
    ) -> Iterator[Any]:
        """As `_row`; their bytes are neighbours, and are read at once."""
        index, starts = self._index(name)
        begin, end = int(starts[row + axis[0][0]]), int(starts[row + axis[-1][0] + 1])
        data, used = memoryview(self._bytes(begin, end - begin)), 0
        for number, size, *_ in axis:
            length, check = index[row + number].item()
            if not length:
                yield np.frombuffer(check.to_bytes(4, "little"), dtype, 1)[0]
                continue
            packed = data[used : used + length]
            used += length
            if zlib.crc32(packed) != check:
                raise DamagedFileError(f"chunk {row + number} of {name} is not as it was written")
            yield _decompress(packed, (lines * size,), dtype)

    def _index(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """The entries of an array's chunks, and where each one starts, with the end of the last."""
        if name not in self._indices:
            array = self._arrays[name]
            count = math.prod(_counts(array["shape"], array["chunk"]))
            start = self._data + array["start"]
            data = self._bytes(start, count * _ENTRY.itemsize)
            if zlib.crc32(data) != array["check"]:
                raise DamagedFileError(f"the index of {name} is not as it was written")
            index = np.frombuffer(data, _ENTRY)
            starts = np.zeros(count + 1, np.int64)
            np.cumsum(index["length"], out=starts[1:])
            self._indices[name] = index, starts + start + len(data)
        return self._indices[name]

    def _chunk(self, index: np.ndarray, starts: np.ndarray, number: int) -> bytes:
        length, check = int(index["length"][number]), int(index["check"][number])
        packed = self._bytes(int(starts[number]), length)
        if zlib.crc32(packed) != check:
            raise DamagedFileError(f"chunk {number} is not as it was written")
        return packed


#: of a chunk on one axis: its number, its size, the part of it that is wanted, and where that part goes
_Overlap = tuple[int, int, slice, slice]


def _overlaps(size: int, chunk: int, wanted: slice) -> list[_Overlap]:
    """The chunks of an axis that a range touches."""
    start, stop, _ = wanted.indices(size)
    overlaps = []
    for number in range(start // chunk, -(-stop // chunk) if stop > start else 0):
        first = number * chunk
        end = min(first + chunk, size)
        low, high = max(first, start), min(end, stop)
        overlaps.append((number, end - first, slice(low - first, high - first), slice(low - start, high - start)))
    return overlaps


def _decompress(packed: bytes | memoryview, shape: Sequence[int], dtype: np.dtype[Any]) -> np.ndarray:
    import blosc2  # noqa: PLC0415

    voxels = math.prod(shape)
    if dtype.kind == "b":
        bits = np.empty(-(-voxels // 8), np.uint8)
        if voxels:
            blosc2.decompress2(packed, bits, nthreads=1)
        return np.unpackbits(bits, count=voxels).view(bool).reshape(shape)
    values = np.empty(shape, dtype)
    if voxels:
        blosc2.decompress2(packed, values, nthreads=1)
    return values
