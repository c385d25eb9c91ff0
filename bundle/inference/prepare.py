# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""What inference prepares beyond pre-training: whole cells."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

from monai.config import KeysCollection
from monai.transforms import MapTransform

from bundle.data import PadToCropd

__all__ = ["PadToWindowd"]


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
