# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""Boxes around findings, for detection: from a list in mm to voxels of the prepared volume, and back.

A box in world coordinates is its centre and size in mm, [x, y, z, width, height, depth] (RAS). A box in voxels is
[x0, y0, z0, x1, y1, z1] on the borders of voxels: voxel `i` of an axis reaches from `i` to `i + 1`, so that a box over
the whole volume is [0, 0, 0, D, H, W]. MONAI's box operations (crop, flip, zoom) and anchors count like this.
"""

from __future__ import annotations

import itertools
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.transforms import MapTransform
from torch import Tensor

from bundle.errors import UserError, VolumeError

__all__ = [
    "BoxesToVoxelsd",
    "ReadBoxesd",
    "as_targets",
    "boxes_in_voxels",
    "boxes_in_world",
    "check_box_classes",
    "list_labels",
]

#: the eight corners of a box: which end of it on each axis
_CORNERS = np.array(list(itertools.product((0, 1), repeat=3)))
#: singular values of the cosines that are too small, by the largest one, to tell sides from noise
_LEAST = 0.2


def check_box_classes(classes: Mapping[str, int] | Sequence[str]) -> int:
    """The number of classes of boxes; there is none for the background.

    Args:
        classes: label in the data list by the name of each class; or their names alone, with the labels 0, 1, 2...

    Raises:
        UserError: if there is no name, or a name or a label appears twice.
    """
    names = list(classes) if isinstance(classes, (Mapping, list, tuple)) else []
    labels = list_labels(classes) if names else []
    named = names and all(isinstance(name, str) and name for name in names) and len(set(names)) == len(names)
    numbered = all(type(label) is int and label >= 0 for label in labels) and len(set(labels)) == len(labels)
    if not named or not numbered:
        raise UserError(f"--classes {classes} does not fit: give each class its own label, such as {{nodule: 0}}")
    if len(names) > 255:
        raise UserError(f"--classes names {len(names)} classes: at most 255 are possible")
    return len(names)


def list_labels(classes: Mapping[str, int] | Sequence[str]) -> list[int]:
    """The label of each class in the data list, in the order of `classes`, which is as for `check_box_classes`."""
    return list(classes.values()) if isinstance(classes, Mapping) else list(range(len(classes)))


def boxes_in_voxels(boxes: Any, affine: Any) -> np.ndarray:
    """Boxes on the borders of voxels; where the volume's axes are not those of the world, the ones that enclose them.

    Args:
        boxes: ``[N, 6]``, centre and size in mm.
        affine: ``[4, 4]``, from the index of a voxel to the RAS coordinates of its centre, in mm.

    Returns:
        float64 ``[N, 6]``.
    """
    boxes = np.asarray(boxes, dtype=np.float64).reshape(-1, 6)
    centre, half = boxes[:, :3], boxes[:, 3:] / 2
    return _enclosing(centre - half, centre + half, np.linalg.inv(np.asarray(affine, dtype=np.float64)), shift=0.5)


def boxes_in_world(boxes: Any, affine: Any) -> np.ndarray:
    """The opposite of `boxes_in_voxels`: centre and size in mm, float64 ``[N, 6]``.

    Where the axes are not those of the world, a box of voxels encloses one of the world. That one is what is asked for,
    and not the larger one that encloses the box of voxels in turn. With |R| of the cosines between the axes, the sides
    in voxels are |R| times those in the world. Near 45 degrees, where |R| cannot be inverted, boxes are taken to be
    as long as they are wide.
    """
    boxes = np.asarray(boxes, dtype=np.float64).reshape(-1, 6) - 0.5  # borders, counted from the centre of voxel 0
    affine = np.asarray(affine, dtype=np.float64)
    ends = _enclosing(boxes[:, :3], boxes[:, 3:], affine, shift=0.0)
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    cosines = np.abs(np.linalg.inv(affine[:3, :3])) * spacing[:, None]
    sides = (boxes[:, 3:] - boxes[:, :3]) * spacing @ np.linalg.pinv(cosines, rcond=_LEAST).T
    sizes = np.clip(sides, 0, ends[:, 3:] - ends[:, :3])
    return np.concatenate([(ends[:, :3] + ends[:, 3:]) / 2, sizes], axis=1)


def _enclosing(low: np.ndarray, high: np.ndarray, matrix: np.ndarray, shift: float) -> np.ndarray:
    """Lowest and highest coordinates of the corners of boxes after a transform."""
    corners = np.where(_CORNERS, high[:, None], low[:, None])  # [N, 8, 3]
    corners = corners @ matrix[:3, :3].T + matrix[:3, 3] + shift
    return np.concatenate([corners.min(axis=1), corners.max(axis=1)], axis=1)


class ReadBoxesd(MapTransform):
    """Lists of boxes and labels as tensors: float64 ``[N, 6]`` in mm as they are, and uint8 ``[N]``, 0 the first class.

    Args:
        keys: of the list of boxes.
        classes: as for `check_box_classes`.
        label_key: of the list of labels.

    Raises:
        VolumeError: for a label that no class has, or numbers that are none.
    """

    def __init__(
        self, keys: KeysCollection = "box", *, classes: Mapping[str, int] | Sequence[str], label_key: str = "label"
    ) -> None:
        super().__init__(keys)
        check_box_classes(classes)
        self.labels, self.label_key = list_labels(classes), label_key

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        item = dict(data)
        name, labels = str(item["name"]), item[self.label_key]
        wrong = [label for label in labels if type(label) is not int or label not in self.labels]
        if wrong:
            known = f"label{'' if len(self.labels) == 1 else 's'} {', '.join(map(str, self.labels))}"
            raise VolumeError(name, f"has a box with label {wrong[0]!r}, --classes has {known}", "correct either")
        for key in self.key_iterator(item):
            try:
                boxes = torch.tensor(item[key], dtype=torch.float64).reshape(-1, 6)
            except (TypeError, ValueError, RuntimeError):
                raise VolumeError(name, "has a box that is not six numbers", "correct the data list") from None
            if not boxes.isfinite().all():
                raise VolumeError(name, "has a box that is not finite", "correct the data list")
            item[key] = boxes
        item[self.label_key] = torch.tensor([self.labels.index(label) for label in labels], dtype=torch.uint8)
        return item


class BoxesToVoxelsd(MapTransform):
    """Brings boxes from mm to the voxels of the image as it is now, clipped to it; its affine is kept as `affine`.

    Put it after all that moves the image (orientation, spacing, crop, padding): the image's affine then holds all of
    it, and no step has to move boxes along.

    Args:
        keys: of the boxes, ``[N, 6]`` in mm.
        image_key: of the image, a `MetaTensor`.

    Raises:
        VolumeError: for a box whose centre is outside the image: as a rule its coordinates are LPS or in voxels.
    """

    def __init__(self, keys: KeysCollection = "box", *, image_key: str = "image") -> None:
        super().__init__(keys)
        self.image_key = image_key

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        item = dict(data)
        image = item[self.image_key]
        affine, size = np.asarray(image.affine, dtype=np.float64), np.array(image.shape[1:] * 2)
        for key in self.key_iterator(item):
            boxes = boxes_in_voxels(item[key], affine)
            centre = (boxes[:, :3] + boxes[:, 3:]) / 2
            for number in np.flatnonzero(((centre < 0) | (centre > size[:3])).any(axis=1)):
                where = ", ".join(f"{value:g}" for value in np.asarray(item[key])[number, :3])
                raise VolumeError(
                    str(item["name"]),
                    f"has a box around ({where}) mm, which is not in the image",
                    "give centre and size in mm in RAS coordinates (DICOM's and ITK's are LPS: turn the signs of x, y)",
                )
            item[key] = torch.from_numpy(boxes.clip(0, size)).to(torch.float32)
        item["affine"] = torch.from_numpy(affine).to(torch.float32)
        return item


def as_targets(boxes: Sequence[Tensor], labels: Sequence[Tensor], **to: Any) -> list[dict[str, Tensor]]:
    """Boxes and labels of each crop of a batch as MONAI's detectors take them: a dict of `box` and `label` for each."""
    return [{"box": box.to(**to), "label": label.long().to(**to)} for box, label in zip(boxes, labels, strict=True)]
