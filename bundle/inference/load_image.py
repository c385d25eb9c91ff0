# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""Reads a scan as training does, as a transform that MONAI's own tools take for their `LoadImaged`."""

from __future__ import annotations

import os
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import LoadImaged
from monai.utils import MetaKeys, SpaceKeys

from bundle.data.find import find_listed
from bundle.data.label_maps import refuse_label_map
from bundle.data.read import read_channels
from bundle.errors import VolumeError

__all__ = ["LoadImageAsTrainedd"]


class LoadImageAsTrainedd(LoadImaged):
    """Reads scans with the reader and the checks of training; slices that are tilted stay so.

    As with MONAI's own, a scan of one channel comes without it: ``[D, H, W]``, else ``[channels, D, H, W]``.

    MONAI Label and MONAI Deploy know the transform that loads by its class, or by "LoadImage" in its name, and put
    another one in its place, or none.

    Args:
        keys: of the file, the folder of a DICOM series, or the list of its files. The files of further channels are
            listed under `channels`. The scan's name in errors is `name`, or that of its file.
        channels: how many a scan must have.

    Raises:
        VolumeError: as `bundle.data.read_volume`; also for another number of channels, or channels on different grids.

    Example:
        >>> import tempfile, nibabel, numpy
        >>> from bundle.inference import LoadImageAsTrainedd
        >>> folder = tempfile.TemporaryDirectory()
        >>> file = f"{folder.name}/scan.nii.gz"
        >>> voxels = numpy.arange(4 * 5 * 6, dtype=numpy.int16).reshape(4, 5, 6)
        >>> nibabel.save(nibabel.Nifti1Image(voxels, numpy.diag([2, 2, 3, 1])), file)
        >>> LoadImageAsTrainedd("image")({"image": file})["image"].shape
        torch.Size([4, 5, 6])
    """

    def __init__(self, keys: KeysCollection = "image", channels: int = 1) -> None:
        super().__init__(keys, image_only=True)
        self.channels = channels

    def __call__(self, data: Mapping[Hashable, Any], reader: Any = None) -> dict[Hashable, Any]:  # noqa: ARG002 - MONAI's
        item = dict(data)
        more, from_folder = item.pop("channels", []), item.pop("from_folder", False)
        for key in self.key_iterator(item):
            files = _files(item[key])
            name = str(item.get("name") or Path(files[0]).name)
            image = self._read([files, *map(list, more)], name)
            if from_folder:
                refuse_label_map(image, files[0], name)
            item[key] = _as_monai_loads(image, str(item.get("filename") or files[0]))
        return item

    def _read(self, channels: Sequence[Sequence[str]], name: str) -> MetaTensor:
        image = read_channels(channels, name, stacked=self.channels > 1)
        if image.shape[0] != self.channels:
            raise VolumeError(name, f"has {image.shape[0]} channels, not the model's {self.channels}", "correct it")
        return image


def _as_monai_loads(image: MetaTensor, filename: str) -> MetaTensor:
    """The image without its channel, if it has one only, and with the metadata that MONAI's transforms ask for."""
    affine, size = image.affine, image.shape[1:]
    meta = {
        # label maps of images with channels, too: by a channel here SaveImaged takes them for stacks of pictures
        MetaKeys.ORIGINAL_CHANNEL_DIM: "no_channel",
        MetaKeys.SPATIAL_SHAPE: np.asarray(size),
        MetaKeys.ORIGINAL_AFFINE: affine.clone(),
        MetaKeys.SPACE: SpaceKeys.RAS,
        "filename_or_obj": filename,
    }
    plain = image.as_tensor()
    return MetaTensor(plain[0] if len(plain) == 1 else plain, affine=affine, meta=meta)


def _files(given: Any) -> list[str]:
    """The files of one scan."""
    if not isinstance(given, str | os.PathLike):
        return [str(file) for file in given]
    path = Path(given)
    if not path.is_dir():
        return [str(path)]
    series = find_listed(path, path.name)
    if len(series) > 1:
        raise VolumeError(path.name, f"holds {len(series)} DICOM series", "give the folder of one of them")
    return list(series[0].files)
