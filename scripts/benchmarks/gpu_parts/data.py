# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""A few real crops in one small folder, with the body beside each, so that training on them needs no ITK."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import torch
from monai.transforms import Compose, MapTransform, Orientationd, ResampleToMatch

from bundle.data import Foregroundd, Modalityd, ReadVolumed, find_volumes, read_volume
from bundle.data.found_volume import FoundVolume
from bundle.data.names import without_ending
from bundle.errors import UserError

__all__ = ["IMAGES", "StoredBodyd", "make_data"]

#: folders of the crops and of their bodies, as configs/finetune_segmentation.yaml reads them
IMAGES, BODIES = "imagesTr", "labelsTr"
_HU = (-1024, 3071)
_MR_TOP = 4000  # what the 99.9th percentile of an MR volume, which has no units, becomes


class StoredBodyd(MapTransform):
    """Puts the body that `make_data` wrote under the key `foreground`, in place of `bundle.data.Foregroundd`.

    Args:
        keys: of the image.
        folder: of the bodies, which have the images' names.
    """

    def __init__(self, keys: str = "image", folder: str = "") -> None:
        super().__init__(keys)
        self.folder = folder

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        item = dict(data)
        image = item[self.first_key(item)]
        file = str(Path(self.folder) / f"{without_ending(str(item['name']))}.nii.gz")  # predictions' names have none
        body = read_volume([file], str(item["name"]), constant=True)
        if body.shape[1:] != image.shape[1:]:  # the image was resampled
            body = ResampleToMatch(mode="nearest")(body, img_dst=image)
        item["foreground"] = type(image)(body.to(torch.uint8).as_subclass(torch.Tensor), affine=image.affine)
        return item


def make_data(volumes: Path, folder: Path, edge: int, limit_mb: float) -> list[str]:
    """Writes crops around the middle of the body, small volumes first, until the limit is reached.

    Args:
        volumes: as `--dataset_dir` of a training.
        folder: to write to; made if missing.
        edge: voxels per axis of a crop, at most.
        limit_mb: 10^6 bytes of all files together.

    Returns:
        One line for each volume.
    """
    prepare = Compose([ReadVolumed(), Orientationd("image", axcodes="RAS", labels=None), Modalityd(), Foregroundd()])
    for name in (IMAGES, BODIES):
        (folder / name).mkdir(parents=True, exist_ok=True)
    written, lines = 0, []
    for volume in sorted(find_volumes(volumes), key=_size):
        item = prepare({"image": list(volume.files), "name": volume.name, "modality": volume.modality})
        name = without_ending(volume.name).replace("/", "_") + ".nii.gz"
        files = _write(item, folder, name, edge)
        size = sum(file.stat().st_size for file in files)
        if written + size > limit_mb * 1e6:
            for file in files:
                file.unlink()
            lines.append(f"{volume.name}: left out, {size / 1e6:.1f} MB more would be too much")
            continue
        written += size
        lines.append(f"{volume.name}: {item['modality']}, {size / 1e6:.1f} MB")
    if written == 0:
        raise UserError(f"--limit_mb {limit_mb} is less than any crop of {volumes} needs: raise it")
    return [*lines, f"{written / 1e6:.1f} MB in all"]


def _size(volume: FoundVolume) -> int:
    return sum(Path(file).stat().st_size for file in volume.files)


def _write(item: dict[str, Any], folder: Path, name: str, edge: int) -> tuple[Path, Path]:
    image, body = item["image"], item["foreground"][0].numpy()
    middle = [(int(axis.min()) + int(axis.max()) + 1) // 2 for axis in np.nonzero(body)]
    corner = [min(max(m - edge // 2, 0), max(s - edge, 0)) for m, s in zip(middle, body.shape)]
    place = tuple(slice(c, c + edge) for c in corner)
    affine = np.asarray(image.affine, dtype=np.float64).copy()
    affine[:3, 3] += affine[:3, :3] @ corner
    values = image[0].numpy()[place]
    if item["modality"] == "CT":
        values = values.clip(*_HU)
    else:
        values = (values * (_MR_TOP / max(float(np.percentile(values, 99.9)), 1e-6))).clip(-_MR_TOP, 2 * _MR_TOP)
    files = folder / IMAGES / name, folder / BODIES / name
    nibabel.save(nibabel.Nifti1Image(np.round(values).astype(np.int16), affine), files[0])
    nibabel.save(nibabel.Nifti1Image(body[place].astype(np.uint8), affine), files[1])
    return files
