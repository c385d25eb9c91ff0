# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""Label maps and findings, for fine-tuning."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform

from bundle.data.read import read_volume
from bundle.errors import UserError, VolumeError

__all__ = ["FindingsTensord", "ReadLabelMapd", "check_classes"]

#: two grids are one if their voxels lie nearer than this, in voxels: writers round the affine differently
_SAME_PLACE = 0.1


def check_classes(classes: Mapping[str, int]) -> int:
    """The number of classes with the background, for a network's last layer.

    Args:
        classes: value in the label maps by the name of each class; the background has none.

    Raises:
        UserError: if there is no class, two share a value, or a value is no whole number from 1 to 65535.
    """
    values = list(classes.values()) if isinstance(classes, Mapping) else []
    if not values or len(set(values)) < len(values) or any(not isinstance(v, int) or not 0 < v < 65536 for v in values):
        raise UserError(f"--classes {classes} does not fit: give each class its own value, such as {{liver: 1}}")
    if len(values) > 254:
        raise UserError(f"--classes names {len(values)} classes: at most 254 are possible")
    return len(values) + 1


class ReadLabelMapd(MapTransform):
    """Reads a volume's label map: uint8 ``[1, D, H, W]``, 0 background, 1 the first of `classes`, 2 the second.

    Args:
        keys: of the file's name.
        classes: value in the file by the name of each class; other values become background.
        image_key: of the image that was read before, whose grid the map must have.

    Raises:
        VolumeError: for a map that cannot be read, is on another grid, or holds values that are no whole numbers.
    """

    def __init__(self, keys: KeysCollection = "label", *, classes: Mapping[str, int], image_key: str = "image") -> None:
        super().__init__(keys)
        check_classes(classes)
        self.values, self.image_key = tuple(classes.values()), image_key

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        item = dict(data)
        image, name = item[self.image_key], str(item["name"])
        for key in self.key_iterator(item):
            labels = read_volume([str(item[key])], f"{name}, its label map {item[key]}", constant=True)
            if labels.shape != image.shape or not _same_grid(labels, image):
                size, other = (" x ".join(map(str, volume.shape[1:])) for volume in (labels, image))
                raise VolumeError(
                    name,
                    f"and its label map are not on one grid ({other} and {size} voxels)",
                    "resample the label map to the image, nearest neighbour",
                )
            if (labels != labels.round()).any():
                raise VolumeError(name, "has a label map with values that are no whole numbers", "correct it")
            indices = torch.zeros(labels.shape, dtype=torch.uint8)
            for index, value in enumerate(self.values, start=1):
                indices[labels.as_tensor() == value] = index
            item[key] = MetaTensor(indices, affine=labels.affine)
        return item


class FindingsTensord(MapTransform):
    """A list of findings, 1, 0 or NaN where not known, as a float32 tensor ``[findings]``.

    Args:
        keys: of the list.
    """

    def __init__(self, keys: KeysCollection = "label") -> None:
        super().__init__(keys)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        item = dict(data)
        for key in self.key_iterator(item):
            item[key] = torch.tensor(item[key], dtype=torch.float32)
        return item


def _same_grid(one: MetaTensor, other: MetaTensor) -> bool:
    """Whether the corners of two volumes of one size lie in one place, to a tenth of a voxel."""
    shape = np.asarray(one.shape[1:]) - 1
    corners = np.array([[*(shape * np.array(bits)), 1] for bits in np.ndindex(2, 2, 2)], dtype=np.float64)
    apart = (np.asarray(one.affine) - np.asarray(other.affine)) @ corners.T
    spacing = np.linalg.norm(np.asarray(other.affine)[:3, :3], axis=0).min()
    return bool(np.abs(apart).max() <= _SAME_PLACE * spacing)
