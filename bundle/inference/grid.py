# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""The grid of a scan as its file has it, and the way back to it from the prepared volume."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from monai.config import KeysCollection
from monai.transforms import MapTransform
from torch import Tensor
from torch.nn import functional

from bundle.data import ToPlainTensorsd

__all__ = ["NoteOwnGridd", "OwnGrid", "ToPlainScand", "own_grid"]

#: of the values that one slab makes; a slab's coordinates take less
_SLAB_BYTES = 96 * 2**20
#: in voxels, of the rounding in an affine
_ROUNDING = 1e-3


@dataclass(frozen=True)
class OwnGrid:
    """The grid of a scan, as it was read: tilted slices, a flipped axis and all.

    Args:
        affine: float64 ``[4, 4]``, from index to RAS mm.
        shape: voxels per axis.
    """

    affine: Tensor
    shape: tuple[int, int, int]

    @property
    def spacing(self) -> tuple[float, ...]:
        """Of its axes, in mm."""
        return tuple(self.affine[:3, :3].norm(dim=0).tolist())

    def slabs(
        self,
        values: Tensor,
        affine: Tensor,
        *,
        outside: Sequence[float] = (),
        nearest: bool = False,
        device: torch.device | str = "cpu",
    ) -> Iterator[tuple[slice, Tensor]]:
        """Interpolates values on this grid, a few planes of the last axis at a time.

        A voxel that lies in no voxel of `values` gets `outside`; one that lies in a voxel at the border, beyond its
        centre, has that voxel's value. Coordinates are computed in float64, so that the result does not depend on how
        the grid is cut.

        Args:
            values: ``[C, d, h, w]``.
            affine: of the values, float64 ``[4, 4]``.
            outside: value of each channel outside; 0 where nothing is given.
            nearest: takes the nearest value, as for a mask, and half-way that of the lower index; else interpolates
                linearly.
            device: where to compute.

        Yields:
            The planes, and the values there: float32 ``[C, D, H, planes]`` on the device.
        """
        to_index = torch.linalg.inv(affine.double()) @ self.affine.double()
        fill = torch.tensor(tuple(outside) or (0.0,) * len(values), dtype=torch.float32, device=device)
        planes = max(1, _SLAB_BYTES // (8 * len(values) * self.shape[0] * self.shape[1]))
        for first in range(0, self.shape[2], planes):
            part = slice(first, min(first + planes, self.shape[2]))
            yield part, _interpolate(values, self._places(part, to_index, device), fill, nearest=nearest)

    def _places(self, part: slice, to_index: Tensor, device: torch.device | str) -> Tensor:
        """Float64 ``[D, H, planes, 3]``: where the voxels of some planes lie, as indices into the values."""
        ranges = (range(self.shape[0]), range(self.shape[1]), range(part.start, part.stop))
        matrix = to_index.to(device)
        along = [
            torch.tensor(list(one), dtype=torch.float64, device=device)[:, None] * matrix[:3, axis]
            for axis, one in enumerate(ranges)
        ]
        return along[0][:, None, None] + along[1][:, None] + along[2] + matrix[:3, 3]


def _interpolate(values: Tensor, places: Tensor, fill: Tensor, *, nearest: bool) -> Tensor:
    size = torch.tensor(values.shape[1:], dtype=torch.float64, device=places.device)
    inside = ((places >= -0.5 - _ROUNDING) & (places <= size - 0.5 + _ROUNDING)).all(-1)
    low = places.amin((0, 1, 2)).floor().clamp(min=0).minimum(size - 1).long().tolist()
    high = places.amax((0, 1, 2)).ceil().clamp(min=0).minimum(size - 1).long().tolist()
    # only what these planes need becomes float64
    window = tuple(slice(a, b + 1) for a, b in zip(low, high, strict=True))
    source = values[:, window[0], window[1], window[2]].to(places.device, torch.float64)
    last = torch.tensor(source.shape[1:], dtype=torch.float64, device=places.device) - 1
    if nearest:
        places = places - _ROUNDING  # else how a half is rounded would depend on how the grid is cut
    grid = 2 * (places - torch.tensor(low, dtype=torch.float64, device=places.device)) / last.clamp(min=1) - 1
    mode = "nearest" if nearest else "bilinear"
    sampled = functional.grid_sample(
        source[None], grid.flip(-1)[None], mode=mode, padding_mode="border", align_corners=True
    )
    return torch.where(inside, sampled[0].float(), fill[:, None, None, None])


class NoteOwnGridd(MapTransform):
    """Notes the grid of a scan as it was read, under `own_affine` and `own_shape`.

    Put it after `ReadVolumed`, before the scan is turned or resampled.

    Args:
        keys: of the image, a `MetaTensor`.
    """

    def __init__(self, keys: KeysCollection = "image") -> None:
        super().__init__(keys)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        item = dict(data)
        image = item[self.first_key(item)]
        affine, shape = image.meta.get("own_grid", (image.affine, image.shape[1:]))
        item["own_affine"] = torch.as_tensor(affine, dtype=torch.float64).clone()
        item["own_shape"] = torch.tensor(tuple(shape))
        return item


class ToPlainScand(ToPlainTensorsd):
    """Keeps, as plain tensors, what inference needs: besides what its base keeps, the name and the two grids.

    These are `affine` (float64 ``[4, 4]``, of the prepared voxels) and what `NoteOwnGridd` noted.

    Args:
        keys: to keep; the first has the affine.
    """

    def __init__(self, keys: KeysCollection = "image") -> None:
        super().__init__(keys)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        image = data[self.first_key(dict(data))]
        kept: dict[Hashable, Any] = {key: data[key] for key in ("name", "own_affine", "own_shape")}
        item: dict[Hashable, Any] = super().__call__(data)
        return item | kept | {"affine": torch.as_tensor(image.affine, dtype=torch.float64).clone()}


def own_grid(item: Mapping[Hashable, Any]) -> OwnGrid:
    """The grid that `NoteOwnGridd` has noted in an item."""
    d, h, w = (int(size) for size in item["own_shape"])
    return OwnGrid(torch.as_tensor(item["own_affine"], dtype=torch.float64), (d, h, w))
