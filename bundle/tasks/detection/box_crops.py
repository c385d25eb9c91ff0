# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""Random crops of volumes with boxes, and batches of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data.box_utils import spatial_crop_boxes
from torch.utils.data import default_collate

from bundle.data import PlacedCropd
from bundle.stores.store import Crop

__all__ = ["RandBoxCropd", "collate_boxes"]


class RandBoxCropd(PlacedCropd):
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
        self.place_keys = (box_key, foreground_key)

    def draw_place(self, item: Mapping[Any, Any], size: Sequence[int]) -> Crop:
        """Draws a place around a box, or in the body."""
        boxes, room = item[self.box_key], np.array(size) - self.spatial_size
        wants_box = self.R.random() < self.positive
        if wants_box and len(boxes):
            corner = self._around(np.asarray(boxes[self.R.randint(len(boxes))]), room)
        else:
            corner = self._in_body(item[self.foreground_key], room)
        d, h, w = (slice(int(a), int(a + length)) for a, length in zip(corner, self.spatial_size))
        return d, h, w

    def finish(self, item: dict[Any, Any], place: Crop) -> dict[Any, Any]:
        """Moves the boxes into the crop; drops those of which too little is inside."""
        boxes, corner, end = item[self.box_key], [side.start for side in place], [side.stop for side in place]
        kept, numbers = spatial_crop_boxes(boxes, corner, end, remove_empty=True)
        labels, whole = item[self.label_key][numbers], boxes[numbers]
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
