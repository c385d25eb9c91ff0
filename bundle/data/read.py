# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""Reads one volume, and says in one line why where it cannot be used."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform

from bundle.data.dicom import UnknownCompressionError, read_header, read_series
from bundle.data.files import is_locked
from bundle.data.formats import ITK, NIBABEL, read_by_itk, read_by_nibabel
from bundle.data.grids import same_place, turn_volume, volume_grid
from bundle.data.label_maps import refuse_label_map
from bundle.data.sanity import check_affine
from bundle.data.straighten import is_sheared, straighten
from bundle.errors import UserError, VolumeError

__all__ = ["ReadVolumed", "read_channels", "read_volume"]


class ReadVolumed(MapTransform):
    """Dictionary form of `read_volume`: a list of files to a `MetaTensor` ``[channels, D, H, W]``.

    Further channels are the images of one grid that are listed under `channels`, or the fourth axis of a NIfTI file.
    A volume with tilted slices is resampled onto a grid with right angles (`straighten`); then `own_grid` in its `meta`
    is the affine and the size that it had.

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
            image = read_channels([item[key], *more], name, stacked=self.channels > 1)
            if image.shape[0] != self.channels:
                raise VolumeError(
                    name,
                    f"has {image.shape[0]} channels, not the {self.channels} of --in_channels",
                    "correct either; several images are one scan as <scan>_0000, <scan>_0001, or listed in a json",
                )
            notes = list(image.meta.get("notes", ()))
            if from_folder:
                notes += refuse_label_map(image, item[key][0], name)
            item[key] = _with_right_angles(image, notes)
        return item


def read_volume(files: Sequence[str], name: str, *, constant: bool = False, stacked: bool = False) -> MetaTensor:
    """Reads and checks a volume.

    Args:
        files: one NIfTI, FreeSurfer, NRRD or MetaImage file, or the files of a DICOM series.
        name: what to call the volume in an error.
        constant: whether it may have one value everywhere, as an empty label map has.
        stacked: whether the fourth axis of a NIfTI file holds channels, as in some tasks of the MSD; else refused.

    Returns:
        Float32 ``[1, D, H, W]``, or ``[channels, D, H, W]`` of a stacked file, in the file's units (HU for CT) with an
        affine to RAS mm, sheared where the slices are tilted. `meta` has `notes`, a tuple of sentences, where slices
        were left out or interpolated. It holds nothing else of the header, which can name a patient.

    Raises:
        VolumeError: if it cannot be read, is not one 3D scalar volume, lacks slices, has a size or voxel size that
            cannot be true, or holds no usable values.
    """
    if not files:
        raise VolumeError(name, "is a folder without a DICOM series of CT or MR", "correct the data list")
    try:
        array, affine, notes = _read(files, name, stacked)
    except VolumeError:
        raise
    except UnknownCompressionError as error:
        raise VolumeError(name, str(error), 'decompress it, as with "gdcmconv --raw", or leave it out') from error
    except Exception as error:  # readers raise anything on a broken file; all of it means the same to the user
        if any(is_locked(Path(file)) for file in files):
            raise VolumeError(name, "may not be read", "correct the permissions of its file(s)") from error
        reason = (str(error).strip().splitlines() or [type(error).__name__])[-1]
        raise VolumeError(name, f"cannot be read ({reason})", "copy it again or leave it out") from error
    for channel in array:
        _check_values(channel, name, constant)
    image = MetaTensor(torch.from_numpy(array), affine=torch.from_numpy(affine))
    if notes:
        image.meta["notes"] = notes
    return image


def read_channels(channels: Sequence[Sequence[str]], name: str, *, stacked: bool = False) -> MetaTensor:
    """Reads the images of one grid as the channels of one volume, with the first image's order of the axes.

    Args:
        channels: the files of each image, as for `read_volume`.
        name: as for `read_volume`.
        stacked: as for `read_volume`.

    Returns:
        Float32 ``[channels, D, H, W]``, as `read_volume` gives it, with what it notes of all images.

    Raises:
        VolumeError: as `read_volume`; also if the images are on different grids.
    """
    images = [read_volume(files, name, stacked=stacked) for files in channels]
    images[1:] = [turn_volume(image, volume_grid(images[0])) for image in images[1:]]
    if not all(same_place(volume_grid(image), volume_grid(images[0])) for image in images):
        raise VolumeError(name, "has channels that are not on one grid", "resample them to the first")
    if len(images) == 1:
        return images[0]
    image = MetaTensor(torch.cat(images), affine=images[0].affine)
    if notes := tuple(note for one in images for note in one.meta.get("notes", ())):
        image.meta["notes"] = notes
    return image


def _with_right_angles(image: MetaTensor, notes: list[str]) -> MetaTensor:
    if is_sheared(image.affine):
        own_grid = np.asarray(image.affine, dtype=np.float64), tuple(image.shape[1:])
        image = straighten(image)
        image.meta["own_grid"] = own_grid
        notes.append("slices are tilted against the long axis, resampled onto a grid with right angles")
    if notes:
        image.meta["notes"] = tuple(dict.fromkeys(notes))
    return image


def _read(files: Sequence[str], name: str, stacked: bool) -> tuple[np.ndarray, np.ndarray, tuple[str, ...]]:
    ending = files[0].lower()
    if len(files) == 1 and ending.endswith(NIBABEL):
        return read_by_nibabel(files[0], name, stacked)
    if len(files) > 1 or (not ending.endswith(ITK) and read_header(files[0]) is not None):
        volume = read_series(files, name)
        check_affine(volume.affine, volume.array.shape, name)
        return volume.array[None], volume.affine, volume.notes
    return read_by_itk(files[0], name)


def _check_values(array: np.ndarray, name: str, constant: bool) -> None:
    low, high = array.min(), array.max()
    if not np.isfinite((low, high)).all():  # a NaN anywhere makes both NaN
        bad = int(np.count_nonzero(~np.isfinite(array)))
        raise VolumeError(name, f"holds {bad} voxels that are NaN or infinite", "repair it or leave it out")
    if not constant and low == high:
        raise VolumeError(name, f"is constant (every voxel is {array.flat[0]:g})", "leave it out")
