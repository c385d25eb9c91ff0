# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""Reads one volume, and says in one line why where it cannot be used."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import nibabel
import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import ITKReader, MetaTensor
from monai.transforms import MapTransform

from bundle.data.label_maps import refuse_label_map
from bundle.errors import UserError, VolumeError

__all__ = ["ReadVolumed", "read_volume", "same_grid"]

#: slices are missing where a step between two neighbours is this many times the usual one
_LARGEST_STEP = 1.5
#: two grids are one if their voxels lie nearer than this, in voxels: writers round the affine differently
_SAME_PLACE = 0.1


class ReadVolumed(MapTransform):
    """Dictionary form of `read_volume`: a list of files to a `MetaTensor` ``[channels, D, H, W]``.

    Further channels are the images of one grid that are listed under `channels`, or the fourth axis of a NIfTI file.

    Args:
        keys: of the files; `name` names the volume in errors.
        channels: how many a volume must have.

    Raises:
        VolumeError: as `read_volume`; also for another number of channels, or channels on different grids, or a label
            map where the item says `from_folder`.

    Example:
        >>> import tempfile, nibabel, numpy
        >>> from bundle.data import ReadVolumed
        >>> folder = tempfile.TemporaryDirectory()
        >>> file = f"{folder.name}/scan.nii.gz"
        >>> voxels = numpy.arange(4 * 5 * 6, dtype=numpy.int16).reshape(4, 5, 6)
        >>> nibabel.save(nibabel.Nifti1Image(voxels, numpy.diag([2, 2, 3, 1])), file)
        >>> image = ReadVolumed("image")({"image": [file], "name": "scan"})["image"]
        >>> image.shape, image.pixdim.tolist()
        (torch.Size([1, 4, 5, 6]), [2.0, 2.0, 3.0])
    """

    def __init__(self, keys: KeysCollection = "image", channels: int = 1) -> None:
        super().__init__(keys)
        if channels < 1:
            raise UserError(f"--in_channels {channels} does not fit: give the number of images per volume, such as 1")
        self.channels = channels

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        item, name = dict(data), str(data["name"])
        more, from_folder = item.pop("channels", []), item.pop("from_folder", False)
        for key in self.key_iterator(item):
            images = [read_volume(files, name, stacked=self.channels > 1) for files in (item[key], *more)]
            if not all(same_grid(image, images[0]) for image in images):
                raise VolumeError(name, "has channels that are not on one grid", "resample them to the first")
            image = images[0] if len(images) == 1 else MetaTensor(torch.cat(images), affine=images[0].affine)
            if image.shape[0] != self.channels:
                raise VolumeError(
                    name, f"has {image.shape[0]} channels, not the {self.channels} of --in_channels", "correct either"
                )
            if from_folder:
                refuse_label_map(image, item[key][0], name)
            item[key] = image
        return item


def read_volume(files: Sequence[str], name: str, *, constant: bool = False, stacked: bool = False) -> MetaTensor:
    """Reads and checks a volume.

    Args:
        files: one NIfTI, NRRD or MetaImage file, or the slices of a DICOM series in order.
        name: what to call the volume in an error.
        constant: whether it may have one value everywhere, as an empty label map has.
        stacked: whether the fourth axis of a NIfTI file holds channels, as in some tasks of the MSD; else refused.

    Returns:
        Float32 ``[1, D, H, W]``, or ``[channels, D, H, W]`` of a stacked file, in the file's units (HU for CT) with an
        affine to RAS mm, and no other metadata: a header can name a patient.

    Raises:
        VolumeError: if it cannot be read, is not one 3D scalar volume, lacks slices, or holds no usable values.
    """
    if not files:
        raise VolumeError(name, "is a folder without a DICOM series of CT or MR", "correct the data list")
    try:
        is_nifti = files[0].lower().endswith((".nii", ".nii.gz"))
        array, affine = _read_nifti(files[0], name, stacked) if is_nifti else _read_itk(files, name)
    except VolumeError:
        raise
    except Exception as error:  # readers raise anything on a broken file; all of it means the same to the user
        reason = (str(error).strip().splitlines() or [type(error).__name__])[-1]
        raise VolumeError(name, f"cannot be read ({reason})", "copy it again or leave it out") from error
    for channel in array:
        _check_values(channel, affine, name, constant)
    return MetaTensor(torch.from_numpy(array), affine=torch.from_numpy(affine))


def same_grid(one: MetaTensor, other: MetaTensor) -> bool:
    """Whether two volumes have one size and the same place in space, to a tenth of a voxel at every corner."""
    if one.shape[1:] != other.shape[1:]:
        return False
    shape = np.asarray(one.shape[1:]) - 1
    corners = np.array([[*(shape * np.array(bits)), 1] for bits in np.ndindex(2, 2, 2)], dtype=np.float64)
    apart = (np.asarray(one.affine) - np.asarray(other.affine)) @ corners.T
    spacing = np.linalg.norm(np.asarray(other.affine)[:3, :3], axis=0).min()
    return bool(np.abs(apart).max() <= _SAME_PLACE * spacing)


def _read_nifti(file: str, name: str, stacked: bool) -> tuple[np.ndarray, np.ndarray]:
    image = nibabel.load(file)
    if image.get_data_dtype().fields:
        raise VolumeError(name, "holds colours, not one value per voxel", "leave it out")
    shape = image.shape
    is_stack = stacked and len(shape) == 4 and shape[3] > 1
    _check_shape(shape[:3] if is_stack else shape, name)
    array = np.asanyarray(image.dataobj, dtype=np.float32)  # header's slope and intercept applied
    array = np.moveaxis(array, 3, 0) if is_stack else array.reshape(1, *shape[:3])
    return np.ascontiguousarray(array), np.asarray(image.affine, dtype=np.float64)


def _read_itk(files: Sequence[str], name: str) -> tuple[np.ndarray, np.ndarray]:
    import itk  # noqa: PLC0415 - large, and not needed for NIfTI

    if len(files) > 1 or files[0].lower().endswith(".dcm"):
        _check_slices(files, name)
    image = itk.imread(list(files) if len(files) > 1 else files[0])
    if image.GetNumberOfComponentsPerPixel() > 1:
        raise VolumeError(name, "holds several values per voxel", "leave it out or split it")
    _check_shape(tuple(image.GetLargestPossibleRegion().GetSize()), name)
    array, meta = ITKReader().get_data(image)
    return np.ascontiguousarray(array, dtype=np.float32)[None], np.asarray(meta["affine"], dtype=np.float64)


def _check_shape(shape: tuple[int, ...], name: str) -> None:
    real = [size for size in shape if size > 1]
    if len(real) < 3:
        raise VolumeError(name, f"is a 2D image ({' x '.join(map(str, shape))})", "leave it out: volumes are needed")
    if len(real) > 3 or any(size > 1 for size in shape[3:]):
        raise VolumeError(
            name, f"is a {len(shape)}D series ({' x '.join(map(str, shape))})", "split it into 3D volumes"
        )


def _check_slices(files: Sequence[str], name: str) -> None:
    """Refuses a DICOM series whose slices are not evenly spaced, of one size and orientation."""
    import pydicom  # noqa: PLC0415 - needed for DICOM only

    tags = ["ImagePositionPatient", "ImageOrientationPatient", "Rows", "Columns", "NumberOfFrames"]
    headers = [pydicom.dcmread(file, stop_before_pixels=True, specific_tags=tags) for file in files]
    if int(headers[0].get("NumberOfFrames", 1) or 1) > 1:
        return  # an enhanced object holds all its slices; ITK reads their geometry
    if len(files) < 2:
        raise VolumeError(name, "is a DICOM series of one slice", "leave it out: volumes are needed")
    if any("ImagePositionPatient" not in h or "ImageOrientationPatient" not in h for h in headers):
        raise VolumeError(name, "has slices without a position", "leave it out")
    if len({(h.Rows, h.Columns, tuple(np.round(h.ImageOrientationPatient, 3))) for h in headers}) > 1:
        raise VolumeError(name, "mixes slices of different size or orientation", "split the series")
    row, column = np.reshape(np.asarray(headers[0].ImageOrientationPatient, dtype=float), (2, 3))
    along = np.sort([np.dot(np.cross(row, column), np.asarray(h.ImagePositionPatient, dtype=float)) for h in headers])
    steps = np.diff(along)
    usual = float(np.median(steps))
    if usual <= 0 or steps.min() < 0.01 * usual:
        raise VolumeError(name, "has several slices at one position (a 4D series?)", "split it into 3D volumes")
    gaps = int((steps > _LARGEST_STEP * usual).sum())
    if gaps:
        missing = int(np.round(steps / usual).sum()) - len(steps)
        raise VolumeError(
            name, f"lacks {missing} of its DICOM slices, in {gaps} place(s)", "fetch them or leave it out"
        )


def _check_values(array: np.ndarray, affine: np.ndarray, name: str, constant: bool) -> None:
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    if not np.isfinite(affine).all() or (spacing < 1e-3).any() or abs(np.linalg.det(affine[:3, :3])) < 1e-9:
        raise VolumeError(name, "has no valid affine (a voxel size of zero, say)", "correct its header or leave it out")
    bad = int(np.count_nonzero(~np.isfinite(array)))
    if bad:
        raise VolumeError(name, f"holds {bad} voxels that are NaN or infinite", "repair it or leave it out")
    if not constant and array.min() == array.max():
        raise VolumeError(name, f"is constant (every voxel is {array.flat[0]:g})", "leave it out")
