# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""Random crops several times as wide as what the network gets, for `bundle.masking.WideField`."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from monai.config import KeysCollection
from torch import Tensor

from bundle.cells import Triple
from bundle.data.crops import RandForegroundCropd
from bundle.data.prepared_volume import PreparedVolume
from bundle.errors import UserError
from bundle.stores.store import Crop

__all__ = ["RandWideCropd", "field_of_view"]

logger = logging.getLogger(__name__)

_WIDEST = 8


class RandWideCropd(RandForegroundCropd):
    """A random crop `field` times as wide as `spatial_size`, on each axis on which the volume is as large.

    On an axis on which the volume is smaller the crop is fewer times as wide: the largest whole number of times, at
    least one, at which no more of it than the share `beyond` lies beyond the volume. So thick slices keep their number.
    What lies beyond the volume is padded as `PadToCropd` does: not valid, and with the lowest value of the crop. On
    which side it lies is drawn.

    Args:
        keys: cropped together, ``[C, D, H, W]`` each; the first is the image, the others are padded with zeros.
        spatial_size: voxels per axis of the crop as the network gets it; no larger than the volume.
        field: how many times as wide to crop, on all axes or on each: 1 to 8.
        beyond: share of the crop on an axis, from 0 to 0.5.
        **options: of `RandForegroundCropd`. `min_foreground` is a share of the wide crop.

    Raises:
        UserError: for a field or a share that does not fit.

    Example:
        >>> import torch
        >>> from bundle.data import RandWideCropd
        >>> crop = RandWideCropd(["image", "foreground"], spatial_size=(8, 8, 8), field=2)
        >>> volume = {name: torch.ones(1, 40, 14, 9) for name in ("image", "foreground")}
        >>> crop(volume)["image"].shape, crop(volume)["foreground"].sum().item() == 16 * 14 * 8
        (torch.Size([1, 16, 16, 8]), True)
    """

    def __init__(
        self,
        keys: KeysCollection,
        *,
        spatial_size: Sequence[int],
        field: int | Sequence[int] = 2,
        beyond: float = 0.25,
        **options: Any,
    ) -> None:
        super().__init__(keys, spatial_size=spatial_size, **options)
        if not 0 <= beyond <= 0.5:
            raise UserError(f"--beyond {beyond} does not fit: give a share from 0 to 0.5")
        self.beyond = beyond
        self.field = field_of_view(field)
        self._before: tuple[int, ...] = ()

    def find_width(self, size: Sequence[int]) -> tuple[int, ...]:
        """Voxels per axis of the crop of a volume of `size` voxels."""
        each = zip(size, self.spatial_size, self.field)
        return tuple(c * min(field, max(1, int(s / (c * (1 - self.beyond)) + 1e-9))) for s, c, field in each)

    def report(self, volumes: Sequence[PreparedVolume]) -> None:
        """Says how many volumes are smaller than the field."""
        wanted = tuple(c * f for c, f in zip(self.spatial_size, self.field))
        narrower = sum(self.find_width(volume.size) != wanted for volume in volumes)
        if narrower:
            logger.info(
                "%d of %d volumes are smaller than the field of %s voxels: on some axes theirs is narrower",
                narrower,
                len(volumes),
                "x".join(map(str, wanted)),
            )

    def draw_place(self, item: Mapping[Any, Any], size: Sequence[int]) -> Crop:
        """As `RandForegroundCropd` does; the part of the crop that lies in the volume."""
        place = super().draw_place(item, size)
        beyond = [max(w - s, 0) for s, w in zip(size, self.find_width(size))]
        self._before = tuple(int(self.R.randint(more + 1)) for more in beyond)
        return place

    def finish(self, item: dict[Any, Any], place: Crop) -> dict[Any, Any]:
        """Pads what lies beyond the volume's border."""
        wide = self.find_width(self._size)
        inside = [axis.stop - axis.start for axis in place]
        if inside != list(wide):
            where = (slice(None), *(slice(before, before + size) for before, size in zip(self._before, inside)))
            for key in self.key_iterator(item):
                crop = item[key].as_subclass(Tensor)
                low = crop.amin((1, 2, 3)) if key == self.first_key(item) else crop.new_zeros(len(crop))
                item[key] = low[:, None, None, None].expand(-1, *wide).clone()
                item[key][where] = crop
        if self.place_key is not None:
            starts = [axis.start - before for axis, before in zip(place, self._before)]
            ends = [[start / size, (start + w - 1) / size] for start, w, size in zip(starts, wide, self._size)]
            item[self.place_key] = torch.tensor(ends)
        return item

    def _draw(self, size: Sequence[int]) -> Crop:
        wide = self.find_width(size)
        starts = [int(self.R.randint(max(s - w, 0) + 1)) for s, w in zip(size, wide)]
        d, h, w = (slice(start, min(start + w, s)) for start, w, s in zip(starts, wide, size))
        return d, h, w


def field_of_view(field: int | Sequence[int]) -> Triple:
    """How many times as wide as the network's crop a crop is, on each axis.

    Raises:
        UserError: if it is no whole number from 1 to 8, or three of them.
    """
    each = list(field) if isinstance(field, Sequence) else [field] * 3
    whole = all(isinstance(f, int) and not isinstance(f, bool) and 1 <= f <= _WIDEST for f in each)
    if len(each) != 3 or not whole:
        raise UserError(f"--field {field} does not fit: give a whole number from 1 to {_WIDEST}, or three of them")
    return each[0], each[1], each[2]
