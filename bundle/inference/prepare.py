# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""What inference prepares beyond pre-training: whole cells, and where they are in the patient."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import torch
from monai.config import KeysCollection
from monai.transforms import MapTransform

from bundle.data import PadToCropd, ToPlainTensorsd

__all__ = ["OriginalGeometryd", "PadToWindowd", "ToPlainItemd"]


class OriginalGeometryd(MapTransform):
    """Notes the size and the voxel size of a volume as it was read, under `original_shape` and `original_spacing` (mm).

    Args:
        keys: of the image, a `MetaTensor`.
    """

    def __init__(self, keys: KeysCollection = "image") -> None:
        super().__init__(keys)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        item = dict(data)
        image = item[self.first_key(item)]
        item["original_shape"] = torch.tensor(image.shape[1:])
        item["original_spacing"] = torch.as_tensor(image.pixdim, dtype=torch.float32).clone()
        return item


class PadToWindowd(MapTransform):
    """Pads a volume to whole cells and at least one window, as `bundle.data.PadToCropd` pads to the crop.

    Args:
        keys: of the image; `foreground` is padded along.
        window: voxels per axis.
        cell: voxels of a cell on each axis.
    """

    def __init__(self, keys: KeysCollection = "image", *, window: Sequence[int], cell: Sequence[int]) -> None:
        super().__init__(keys)
        self.window, self.cell = tuple(window), tuple(cell)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        size = data[self.first_key(dict(data))].shape[1:]
        whole = [max(w, -(-s // c) * c) for s, w, c in zip(size, self.window, self.cell)]
        padded: dict[Hashable, Any] = PadToCropd(self.keys, spatial_size=whole)(data)
        return padded


class ToPlainItemd(ToPlainTensorsd):
    """Keeps, besides what its base keeps, the volume's name and what tells where its cells are.

    That is `affine` (float64 ``[4, 4]``, voxel to RAS mm) and what `OriginalGeometryd` noted.

    Args:
        keys: to keep; the first has the affine.
    """

    def __init__(self, keys: KeysCollection = ("image", "foreground")) -> None:
        super().__init__(keys)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        image = data[self.first_key(dict(data))]
        kept: dict[Hashable, Any] = {key: data[key] for key in ("name", "original_shape", "original_spacing")}
        item: dict[Hashable, Any] = super().__call__(data)
        affine = torch.as_tensor(image.affine, dtype=torch.float64).clone()
        return item | kept | {"affine": affine}
