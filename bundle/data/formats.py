# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""Reads the files that hold one volume each: NIfTI and FreeSurfer by nibabel, NRRD and MetaImage by ITK."""

from __future__ import annotations

import gzip
import struct
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from nibabel.spatialimages import HeaderDataError
from nibabel.volumeutils import apply_read_scaling

from bundle.data.cut_off import check_end
from bundle.data.header_texts import TextHeader, read_text_header
from bundle.data.memory_order import last_axis_fastest
from bundle.data.sanity import check_affine, check_shape, check_size
from bundle.errors import VolumeError

__all__ = [
    "ITK",
    "NIBABEL",
    "FileHeader",
    "itk_affine",
    "read_by_itk",
    "read_by_nibabel",
    "read_file_header",
    "to_millimetres",
]

#: what nibabel reads; an Analyze pair has the endings of a NIfTI pair
NIBABEL = (".nii", ".nii.gz", ".mgz", ".mgh", ".hdr", ".img")
#: what ITK reads
ITK = (".nrrd", ".nhdr", ".mha", ".mhd")

#: by the code of a NIfTI header's unit of length, what it is called and its mm; most writers leave 0 where they mean mm
_UNITS = {0: ("mm", 1.0), 1: ("meter", 1000.0), 2: ("mm", 1.0), 3: ("micron", 0.001)}
#: from an origin to a scanner's centre, in mm
_FARTHEST = 5000.0
#: how far a scanner's centre may lie outside a volume, in mm: of a knee or a shoulder
_OFF_CENTRE = 50.0
#: sform and qform differ if a corner lies farther apart, in voxels
_APART = 0.5
_GZIP, _CHUNK = b"\x1f\x8b", 2**20
#: the first bytes of a NIfTI file, 1 or 2, in either order
_SIZES_OF_HEADERS = [struct.pack(order + "i", size) for order in "<>" for size in (348, 540)]


@dataclass(frozen=True)
class FileHeader:
    """What is known of a volume's file before its voxels are read.

    Attributes:
        shape: voxels per axis.
        channels: of a NIfTI file whose fourth axis holds several, how many; else 1.
        affine: ``[4, 4]``, from index to RAS mm.
        notes: what is assumed, a sentence each.
        check_end: raises an error if the file of the voxels ends before they do. It seldom has to read them.
    """

    shape: tuple[int, ...]
    channels: int
    affine: np.ndarray
    notes: tuple[str, ...]
    check_end: Callable[[], None]


def read_file_header(file: str, name: str, *, stacked: bool = False) -> FileHeader:
    """Reads and checks the header of a file that holds one volume.

    Args:
        file: NIfTI, FreeSurfer, NRRD, MetaImage, or another one that ITK knows.
        name: what to call the volume in an error.
        stacked: as for `read_by_nibabel`.

    Raises:
        VolumeError: as `read_by_nibabel`; other errors if the header is damaged.
    """
    if file.lower().endswith(NIBABEL):
        return _check_nibabel(_open_by_nibabel(file, name), name, stacked)
    return _check_itk(file, name)


def read_by_nibabel(file: str, name: str, stacked: bool) -> tuple[np.ndarray, np.ndarray, tuple[str, ...]]:
    """Reads a NIfTI or FreeSurfer file.

    Args:
        file: to read.
        name: what to call the volume in an error.
        stacked: whether the fourth axis holds channels; else it is refused.

    Returns:
        Float32 ``[channels, D, H, W]``, the affine from index to RAS mm, and notes on what was assumed.

    Raises:
        VolumeError: if it is not one 3D volume of plain numbers, or its size or voxel size cannot be true.
    """
    image = _open_by_nibabel(file, name)
    header = _check_nibabel(image, name, stacked)
    proxy, stored = image.dataobj, _stored_values(image, file)
    channels = np.moveaxis(stored, 3, 0) if header.channels > 1 else stored.reshape(1, *header.shape, order="F")
    # in float64, as nibabel does it, but not all voxels at once
    scale = partial(apply_read_scaling, slope=np.float64(proxy.slope), inter=np.float64(proxy.inter))
    arrays = [last_axis_fastest(channel, scale) for channel in channels]
    return arrays[0][None] if len(arrays) == 1 else np.stack(arrays), header.affine, header.notes


def _open_by_nibabel(file: str, name: str) -> Any:
    """An image of nibabel's.

    Raises:
        VolumeError: if the file is a NIfTI that is compressed, or not, against what its name says; or another error.
    """
    with Path(file).open("rb") as stream:
        start = stream.read(4)
    if start.startswith(_GZIP) and file.lower().endswith(".nii"):
        raise VolumeError(name, "is compressed by gzip and not called .nii.gz", "rename it to .nii.gz")
    if start in _SIZES_OF_HEADERS and file.lower().endswith(".nii.gz"):
        raise VolumeError(name, "is called .nii.gz and is not compressed by gzip", "rename it to .nii")
    return nibabel.load(file)


def _check_nibabel(image: Any, name: str, stacked: bool) -> FileHeader:
    _check_kind(image, name)
    shape = image.shape
    is_stack = stacked and len(shape) == 4 and shape[0] > 1 and shape[3] > 1
    check_shape(shape[:3] if is_stack else shape, name)
    affine, notes = to_millimetres(image)
    notes += _doubts(image)
    if isinstance(image, nibabel.Nifti1Pair):
        _check_nifti(image, name)
    check_affine(affine, shape[:3], name)
    check_size(shape, name)
    end = partial(check_end, Path(image.file_map["image"].filename), _bytes_to_the_end(image))
    return FileHeader(shape[:3], shape[3] if is_stack else 1, affine, notes, end)


def _bytes_to_the_end(image: Any) -> int:
    """Of a file, unpacked, up to the last voxel."""
    return int(image.dataobj.offset + np.prod(image.shape) * image.get_data_dtype().itemsize)


def read_by_itk(file: str, name: str) -> tuple[np.ndarray, np.ndarray, tuple[str, ...]]:
    """Reads an NRRD or MetaImage file, or another one that ITK knows; returns and raises as `read_by_nibabel`."""
    import itk  # noqa: PLC0415 - large, and not needed for NIfTI
    from monai.data import ITKReader  # noqa: PLC0415

    kind, shape, header = _open_by_itk(file, name)
    header.check_end(int(kind.GetImageSizeInBytes()))
    header.check_compressed()
    # to float in ITK: it has no images of int8 or of 64-bit integers in Python
    image = itk.imread(file, pixel_type=itk.F)
    array, meta = ITKReader().get_data(image)
    affine = np.array(meta["affine"], dtype=np.float64)
    affine[:3] *= header.millimetres(name)
    check_affine(affine, array.shape[:3], name)
    return last_axis_fastest(np.asarray(array).reshape(shape[:3], order="F"))[None], affine, header.notes


def _open_by_itk(file: str, name: str) -> tuple[Any, tuple[int, ...], TextHeader]:
    """ITK's object that has read the header, the checked shape, and what ITK does not read."""
    import itk  # noqa: PLC0415

    kind = itk.ImageIOFactory.CreateImageIO(file, itk.CommonEnums.IOFileMode_ReadMode)
    if kind is None:
        itk.imread(file)  # says what is wrong
        raise ValueError("of no known format")
    kind.SetFileName(file)
    kind.ReadImageInformation()
    if kind.GetNumberOfComponents() > 1:
        raise VolumeError(name, "holds several values per voxel", "leave it out or split it")
    shape = tuple(int(kind.GetDimensions(axis)) for axis in range(kind.GetNumberOfDimensions()))
    check_shape(shape, name)
    check_size(shape, name)
    return kind, shape, read_text_header(file)


def _check_itk(file: str, name: str) -> FileHeader:
    kind, shape, header = _open_by_itk(file, name)
    affine = itk_affine(kind)
    affine[:3] *= header.millimetres(name)
    check_affine(affine, shape[:3], name)
    return FileHeader(shape[:3], 1, affine, header.notes, partial(header.check_end, int(kind.GetImageSizeInBytes())))


def itk_affine(header: Any) -> np.ndarray:
    """The affine of a header that ITK has read, to RAS, in the header's unit, ``[4, 4]``."""
    affine = np.eye(4)
    for axis in range(3):
        affine[:3, axis] = np.asarray(header.GetDirection(axis))[:3] * header.GetSpacing(axis)
        affine[axis, 3] = header.GetOrigin(axis)
    return np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine  # ITK's axes go to the left and to posterior


def _check_kind(image: Any, name: str) -> None:
    if not isinstance(image, nibabel.Nifti1Pair | nibabel.MGHImage):  # NIfTI-2 is a subclass
        raise VolumeError(
            name, "is an Analyze image, whose header does not tell left from right", "convert it to NIfTI"
        )
    kind = image.get_data_dtype()
    if kind.fields:
        raise VolumeError(name, "holds colours, not one value per voxel", "leave it out")
    if kind.kind == "c":
        raise VolumeError(name, "holds complex numbers", "save its magnitude, or leave it out")


def _check_nifti(image: Any, name: str) -> None:
    """Refuses what nibabel puts right in silence as it opens a file: a size of voxels of 0, and the place of the first.

    Raises:
        VolumeError: for these.
    """
    kind = type(image.header)
    with image.file_map.get("header", image.file_map["image"]).get_prepare_fileobj("rb") as stream:
        header = kind.from_fileobj(stream, check=False)
    if not int(header["sform_code"]) and not np.all(np.abs(header["pixdim"][1:4]) > 0):
        raise VolumeError(name, "has no valid affine: a voxel size is 0", "repair its header or leave it out")
    first, least = float(header["vox_offset"]), kind.single_vox_offset
    if header["magic"].item() == kind.single_magic and first < least:
        problem = f"has its first voxel at byte {first:g}, inside its header"
        raise VolumeError(name, problem, f"set vox_offset to {least}, or save it again")


def to_millimetres(image: Any) -> tuple[np.ndarray, tuple[str, ...]]:
    """The affine of an image that nibabel has opened, to RAS mm, and a note on its origin where it is in doubt."""
    affine = np.array(image.affine, dtype=np.float64)
    code = int(image.header["xyzt_units"]) % 8 if isinstance(image, nibabel.Nifti1Pair) else 0
    unit, factor = _UNITS.get(code, ("", 1.0))
    if not unit:
        return affine, (f"its unit of length has a code that the format does not know, {code}; mm are taken",)
    if factor == 1.0:
        return affine, ()
    origin = affine[:3, 3].copy()
    affine[:3] *= factor
    if not origin.any() or np.abs(origin).max() >= _FARTHEST:
        return affine, ()
    is_nowhere = np.abs(affine[:3, 3]).max() > _FARTHEST
    is_near_zero = _is_odd_within_a_voxel(affine)
    if is_nowhere or (is_near_zero and _is_around_centre(affine, origin, image.shape[:3])):
        affine[:3, 3] = origin
        return affine, (f"units are {unit}s; its origin is taken as mm, since it makes no sense in {unit}s",)
    if is_near_zero:
        return affine, (f"units are {unit}s; its origin, less than a voxel, is taken so, too, but may be in mm",)
    return affine, ()


def _is_odd_within_a_voxel(affine: np.ndarray) -> bool:
    """Whether an origin is nearer to 0 than a voxel, but neither 0 nor half a voxel, as a true one would be.

    Some writers convert the size of a voxel, but not the origin.
    """
    halves = 2 * np.linalg.solve(affine[:3, :3], affine[:3, 3])
    is_within = np.abs(affine[:3, 3]).max() < np.linalg.norm(affine[:3, :3], axis=0).min()
    return bool(is_within and np.abs(halves - np.rint(halves)).max() >= 1e-3)


def _is_around_centre(affine: np.ndarray, origin: np.ndarray, shape: tuple[int, ...]) -> bool:
    """Whether a volume with its origin in mm lies around the scanner's centre, or nearly so, on two axes.

    An axis on which the origin is 0 says nothing.
    """
    size = np.linalg.norm(affine[:3, :3], axis=0)
    centre = np.linalg.solve(affine[:3, :3], -origin) * size  # mm along each axis
    is_near = (centre >= -_OFF_CENTRE) & (centre <= size * shape + _OFF_CENTRE) & (np.abs(centre) > 1e-6)
    return int(is_near.sum()) >= 2


def _doubts(image: Any) -> tuple[str, ...]:
    """Notes on a NIfTI header that tells the place of the volume twice, or not at all."""
    if not isinstance(image, nibabel.Nifti1Pair):
        return ()
    sform = image.header.get_sform(coded=True)
    try:
        qform = image.header.get_qform(coded=True)
    except (HeaderDataError, ValueError):  # its quaternion is none
        qform = (np.full((4, 4), np.nan), int(image.header["qform_code"]))
    if not sform[1] and not qform[1]:
        return ("the header has neither sform nor qform, so left and right are a guess",)
    if not sform[1] or not qform[1]:
        return ()
    if not np.isfinite(qform[0]).all():
        return ("the qform is not valid; the sform is taken",)
    last = np.array(image.shape[:3]) - 1
    corners = np.array([[*(last * np.array(bits)), 1] for bits in np.ndindex(2, 2, 2)], dtype=np.float64)
    apart = np.linalg.norm(((sform[0] - qform[0]) @ corners.T)[:3], axis=0).max()
    if apart < _APART * np.linalg.norm(sform[0][:3, :3], axis=0).min():
        return ()
    return (f"sform and qform are up to {apart:.3g} apart; the sform is taken",)


def _stored_values(image: Any, file: str) -> np.ndarray:
    """The voxels of an image, before they are scaled.

    A gzip file is read to its end: the checksum stands there, and nibabel stops at the last voxel.

    Raises:
        OSError: if the file is damaged; or EOFError.
    """
    proxy = image.dataobj
    with Path(file).open("rb") as stream:
        if stream.read(2) != _GZIP:
            return np.asarray(proxy.get_unscaled())
    unpacked, size = np.empty(_bytes_to_the_end(image), np.uint8), 0
    with gzip.open(file) as stream:
        while part := stream.read(_CHUNK):
            piece = np.frombuffer(part, np.uint8)[: unpacked.size - size]
            unpacked[size : size + piece.size] = piece
            size += piece.size
    if size < unpacked.size:
        raise OSError(f"Expected {unpacked.size} bytes, got {size} bytes")
    return unpacked[proxy.offset :].view(proxy.dtype).reshape(proxy.shape, order="F")
