# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""Brings tilted slices onto a grid with right angles, and what was found there back."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import InvertibleTransform, MapTransform, SpatialResample
from monai.utils import MetaKeys, TraceKeys

from bundle.data.straighten import is_sheared, straighten

__all__ = ["Straightend"]


class Straightend(MapTransform, InvertibleTransform):
    """Dictionary form of `bundle.data.straighten.straighten` that MONAI's `Invertd` can undo.

    Args:
        keys: of the image, a `MetaTensor` ``[channels, D, H, W]``.
    """

    def __init__(self, keys: KeysCollection = "image") -> None:
        super().__init__(keys)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        item = dict(data)
        for key in self.key_iterator(item):
            image = item[key]
            if is_sheared(image.affine):
                undo = {"mode": "bilinear", "affine": image.affine.clone()}
                straight = straighten(image)
                kept = {name: value for name, value in image.meta.items() if name != MetaKeys.AFFINE}
                straight = MetaTensor(straight.as_tensor(), affine=straight.affine, meta=kept)
                straight.applied_operations = image.applied_operations
                self.push_transform(straight, orig_size=image.shape[1:], extra_info=undo)
                item[key] = straight
        return item

    def inverse(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Resamples onto the tilted grid, by the interpolation that `Invertd` asks for."""
        item = dict(data)
        for key in self.key_iterator(item):
            done = item[key].applied_operations
            if done and done[-1][TraceKeys.CLASS_NAME] == type(self).__name__:
                about = self.pop_transform(item[key])
                undo, size = about[TraceKeys.EXTRA_INFO], about[TraceKeys.ORIG_SIZE]
                resample = SpatialResample(mode=undo["mode"], padding_mode="border")
                with resample.trace_transform(False):
                    item[key] = resample(item[key], dst_affine=undo["affine"], spatial_size=tuple(size))
        return item
