# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""Scans and label maps made small enough for a page: cropped, reduced, of 8 bits, packed."""

from __future__ import annotations

import base64
import gzip
import io
import struct
from collections.abc import Sequence
from dataclasses import dataclass

import nibabel
import numpy as np
from PIL import Image
from scipy import ndimage

__all__ = ["Grid", "PackedVolume", "grey", "pack_labels", "pack_scan", "shrink_to"]

_QUALITY = 80  # of WebP: off by 2 of 255 grey levels in CT, at a tenth of the bytes of gzip
_TOP = 255


@dataclass(frozen=True)
class Grid:
    """A coarser grid: blocks of voxels that become one.

    Args:
        whole: size of the volume.
        factor: voxels of a block along each axis. Voxels at the end that fill no block are left out.
    """

    whole: tuple[int, ...]
    factor: tuple[int, ...] = (1, 1, 1)

    @property
    def shape(self) -> tuple[int, ...]:
        """Blocks along each axis."""
        return tuple(size // factor for size, factor in zip(self.whole, self.factor, strict=True))

    def place(self, affine: np.ndarray) -> np.ndarray:
        """The affine to mm of the blocks' centres, from that of the voxels."""
        coarse = np.diag([*self.factor, 1.0])
        coarse[:3, 3] = [(factor - 1) / 2 for factor in self.factor]
        placed: np.ndarray = affine @ coarse
        return placed

    def blocks(self, volume: np.ndarray, box: Sequence[slice] = (slice(None),) * 3) -> np.ndarray:
        """The voxels of the blocks in a box of blocks, ``[d, h, w, voxels of a block]``."""
        starts, stops, _ = zip(*(part.indices(size) for part, size in zip(box, self.shape, strict=True)), strict=True)
        sizes = [stop - start for start, stop in zip(starts, stops, strict=True)]
        inside = [slice(a * f, b * f) for a, b, f in zip(starts, stops, self.factor, strict=True)]
        split = volume[tuple(inside)].reshape([n for pair in zip(sizes, self.factor, strict=True) for n in pair])
        return split.transpose(0, 2, 4, 1, 3, 5).reshape(*sizes, -1)


@dataclass(frozen=True)
class PackedVolume:
    """A volume as text for a page. The header holds a size and a place, and not a word."""

    header: str  # base64 of a NIfTI header of 352 bytes
    coding: str  # "gzip": the voxels, the first axis fastest; "webp": a picture of each slice, its length before it
    voxels: str  # base64

    def __len__(self) -> int:
        return len(self.header) + len(self.voxels)


def grey(scan: np.ndarray, window: tuple[float, float] | None = None) -> tuple[np.ndarray, tuple[float, float]]:
    """The scan in 256 grey levels.

    Args:
        scan: ``[D, H, W]``.
        window: intensities that must be among them; None: none. All reach from the 0.5th to the 99.5th percentile,
            which leave out metal and noise.

    Returns:
        The levels, uint8, and the intensities of the lowest and the highest.
    """
    step = max(1, scan.size // 4_000_000)  # enough voxels for a percentile
    low, high = np.percentile(scan.ravel()[::step], (0.5, 99.5))
    if window is not None:
        low, high = min(low, window[0]), max(high, window[1])
    width = max(float(high) - float(low), 1e-6)
    levels = np.empty(scan.shape, dtype=np.uint8)
    for index, plane in enumerate(scan):  # plane by plane: a whole CT in float would take gigabytes
        levels[index] = np.rint(np.clip((plane.astype(np.float32) - low) / width, 0, 1) * _TOP)
    return levels, (float(low), float(low) + width)


def shrink_to(shape: Sequence[int], spacing: Sequence[float], most: int) -> Grid:
    """The finest grid of at most `most` voxels; the axis with the finest voxels goes first, so that they become even.

    Args:
        shape: of the whole volume.
        spacing: of its voxels, in mm.
        most: voxels of the result.
    """
    factor = [1, 1, 1]
    while np.prod(Grid(tuple(shape), tuple(factor)).shape) > most:
        sizes = [f * mm if size // f > 1 else np.inf for f, mm, size in zip(factor, spacing, shape, strict=True)]
        factor[int(np.argmin(sizes))] += 1
    return Grid(tuple(shape), tuple(factor))


def pack_scan(
    levels: np.ndarray,
    grid: Grid,
    affine: np.ndarray,
    span: tuple[float, float],
    most: int,
    window: tuple[float, float] | None = None,
) -> PackedVolume:
    """A scan: as gzip, which keeps every grey level, or where that has more than `most` bytes as pictures.

    Args:
        levels: uint8 ``[D, H, W]``, as `grey` makes them.
        grid: to bring them to; a block gets its mean.
        affine: of `levels`, to mm.
        span: intensities of the lowest and the highest level.
        most: bytes.
        window: intensities to show as black and white; None: the whole span.
    """
    taken = levels if grid.factor == (1, 1, 1) else np.rint(grid.blocks(levels).mean(axis=-1, dtype=np.float32))
    taken = taken.astype(np.uint8)
    low, high = span
    header = _header(grid, affine, shown=window or span, slope=(high - low) / _TOP, intercept=low)
    packed = PackedVolume(header, "gzip", _zipped(taken))
    return packed if len(packed) <= most else PackedVolume(header, "webp", _base64(_pictures(taken)))


def pack_labels(labels: np.ndarray, grid: Grid, affine: np.ndarray, values: Sequence[int]) -> PackedVolume:
    """A label map as gzip, with 1, 2, ... in place of `values` and 0 in place of all others.

    A block gets the class that most of its voxels have, the background left aside: a small structure stays in sight.
    """
    kind = np.uint8 if len(values) <= _TOP else np.uint16
    order = np.argsort(values)
    ordered = np.asarray(values)[order]
    numbers = np.zeros(labels.shape, dtype=kind)
    for plane, found in zip(labels, numbers, strict=True):
        place = np.searchsorted(ordered, plane).clip(max=len(values) - 1)
        found[...] = np.where(ordered[place] == plane, order[place] + 1, 0)
    if grid.factor != (1, 1, 1):
        numbers = _most_frequent(numbers, grid)
    return PackedVolume(_header(grid, affine, shown=(0, len(values)), kind=kind), "gzip", _zipped(numbers))


def _most_frequent(numbers: np.ndarray, grid: Grid) -> np.ndarray:
    best = np.zeros(grid.shape, dtype=np.float32)
    found = np.zeros(grid.shape, dtype=numbers.dtype)
    for number, place in enumerate(ndimage.find_objects(numbers), start=1):
        if place is None:
            continue
        box = tuple(
            slice(part.start // factor, min(-(-part.stop // factor), size))
            for part, factor, size in zip(place, grid.factor, grid.shape, strict=True)
        )
        share = (grid.blocks(numbers, box) == number).mean(axis=-1, dtype=np.float32)
        wins = share > best[box]
        found[box][wins], best[box][wins] = number, share[wins]
    return found


def _header(
    grid: Grid,
    affine: np.ndarray,
    *,
    shown: tuple[float, float],
    slope: float = 1.0,
    intercept: float = 0.0,
    kind: type = np.uint8,
) -> str:
    header = nibabel.Nifti1Header()
    header.set_data_dtype(kind)
    header.set_data_shape(grid.shape)
    place = grid.place(affine)
    header.set_sform(place, code=1)
    header.set_qform(place, code=1, strip_shears=True)
    header.set_xyzt_units("mm")
    header["magic"], header["vox_offset"] = b"n+1", 352
    header["scl_slope"], header["scl_inter"] = slope, intercept
    header["cal_min"], header["cal_max"] = shown
    return _base64(header.binaryblock + bytes(4))


def _pictures(levels: np.ndarray) -> bytes:
    return b"".join(struct.pack("<I", len(one)) + one for one in map(_picture, np.moveaxis(levels, 2, 0)))


def _picture(plane: np.ndarray) -> bytes:
    content = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(plane.T)).convert("RGB").save(content, "WEBP", quality=_QUALITY, method=2)
    return content.getvalue()


def _zipped(voxels: np.ndarray) -> str:
    return _base64(gzip.compress(voxels.tobytes(order="F"), 6, mtime=0))


def _base64(content: bytes) -> str:
    return base64.b64encode(content).decode()
