# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""Random crops of volumes with boxes, and batches of them."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data.box_utils import spatial_crop_boxes
from monai.transforms import MapTransform, Randomizable
from torch.utils.data import default_collate

__all__ = ["RandBoxCropd", "collate_boxes"]


class RandBoxCropd(Randomizable, MapTransform):
    """Crops around a box drawn at random, or, in the other draws and in volumes without boxes, anywhere in the body.

    MONAI's `RandCropBoxByPosNegLabeld` does the same, but paints and copies the whole volume for every crop; this one
    reads the crop's voxels only.

    Args:
        keys: cropped together, ``[1, D, H, W]`` each.
        spatial_size: voxels per axis; no larger than the volume.
        positive: share of the draws that are to hold a box; the box lies in the crop as a whole, if it fits.
        min_share: of its volume that a box must have in the crop to count as there.
        box_key: of the boxes, ``[N, 6]`` in voxels.
        label_key: of their labels, ``[N]``.
        foreground_key: uint8 mask of the body.
        tries: places to look at for one whose middle is in the body.
    """

    def __init__(
        self,
        keys: KeysCollection = "image",
        *,
        spatial_size: Sequence[int],
        positive: float = 0.7,
        min_share: float = 0.25,
        box_key: str = "box",
        label_key: str = "label",
        foreground_key: str = "foreground",
        tries: int = 10,
    ) -> None:
        super().__init__(keys)
        self.spatial_size, self.positive, self.min_share = np.array(spatial_size), positive, min_share
        self.box_key, self.label_key, self.foreground_key, self.tries = box_key, label_key, foreground_key, tries

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        item = dict(data)
        boxes, room = item[self.box_key], np.array(item[self.first_key(item)].shape[1:]) - self.spatial_size
        wants_box = self.R.random() < self.positive
        if wants_box and len(boxes):
            corner = self._around(np.asarray(boxes[self.R.randint(len(boxes))]), room)
        else:
            corner = self._in_body(item[self.foreground_key], room)
        end = corner + self.spatial_size
        place = (slice(None), *(slice(int(a), int(b)) for a, b in zip(corner, end)))
        for key in self.key_iterator(item):
            item[key] = item[key][place].clone()
        kept, keep = spatial_crop_boxes(boxes, corner.tolist(), end.tolist(), remove_empty=True)
        labels, whole = item[self.label_key][keep], boxes[keep]
        enough = _volume(kept) >= self.min_share * _volume(whole)
        item[self.box_key], item[self.label_key] = kept[enough], labels[enough]
        return item

    def _around(self, box: np.ndarray, room: np.ndarray) -> np.ndarray:
        """A corner of a crop that holds the box or, on an axis on which the box is longer, is held by it."""
        ends = np.ceil(box[3:]).astype(int) - self.spatial_size, np.floor(box[:3]).astype(int)
        low, high = (np.clip(end, 0, room) for end in (np.minimum(*ends), np.maximum(*ends)))
        return self.R.randint(low, high + 1)

    def _in_body(self, foreground: torch.Tensor, room: np.ndarray) -> np.ndarray:
        for _ in range(self.tries):
            corner = self.R.randint(0, room + 1)
            middle = corner + self.spatial_size // 2
            if foreground[0, middle[0], middle[1], middle[2]]:
                break
        return corner


def collate_boxes(crops: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """A batch of crops, with `box` and `label` as lists of tensors: each crop has its own number of boxes."""
    batch: dict[str, Any] = default_collate(
        [{key: value for key, value in crop.items() if key not in ("box", "label")} for crop in crops]
    )
    return batch | {key: [crop[key] for crop in crops] for key in ("box", "label")}


def _volume(boxes: torch.Tensor) -> torch.Tensor:
    return (boxes[:, 3:] - boxes[:, :3]).prod(dim=1)
