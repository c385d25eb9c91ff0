# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""What of a volume a classifier sees: the whole of it, or crops at full resolution."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import torch
from monai.config import KeysCollection
from monai.transforms import MapTransform, Resize

from bundle.errors import UserError

__all__ = ["FitInputd"]

_INPUTS = ("whole", "crop")


class FitInputd(MapTransform):
    """Shrinks a volume until it fits into the crop, or leaves it as it is. It is never enlarged.

    The axes that are too long are resampled to one voxel size, the smallest with which all fit, and so are the others
    where their voxels are smaller than that: proportions stay, and thick slices stay apart.

    Args:
        keys: of the image, first, and its masks.
        spatial_size: of the crop, voxels per axis.
        input: "whole" shrinks, "crop" does nothing.

    Raises:
        UserError: for another `input`.
    """

    def __init__(self, keys: KeysCollection, *, spatial_size: Sequence[int], input: str = "whole") -> None:  # noqa: A002 - the option's name
        super().__init__(keys)
        if input not in _INPUTS:
            raise UserError(f"--input {input!r} is not known: choose one of {', '.join(_INPUTS)}")
        self.spatial_size, self.shrink = tuple(spatial_size), input == "whole"

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        item = dict(data)
        first = item[self.first_key(item)]
        size = _fitting(first.shape[1:], first.pixdim.tolist(), self.spatial_size) if self.shrink else first.shape[1:]
        if tuple(size) != tuple(first.shape[1:]):
            for key in self.key_iterator(item):
                is_mask = item[key].dtype in (torch.uint8, torch.bool)
                # area: the mean of what a new voxel covers, so that nothing small falls between the samples
                item[key] = Resize(size, mode="nearest" if is_mask else "area")(item[key])
        return item


def _fitting(size: Sequence[int], spacing: Sequence[float], limit: Sequence[int]) -> tuple[int, ...]:
    """The size of a volume that is shrunk to `limit` voxels per axis at most."""
    needed = max((s * mm / most for s, mm, most in zip(size, spacing, limit) if s > most), default=0.0)
    return tuple(s if mm >= needed else max(1, min(round(s * mm / needed), s)) for s, mm in zip(size, spacing))
