# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""Random appearance by region: every part of a crop gets grey scales of its own."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.transforms import MapTransform, RandomizableTransform
from torch import Tensor

from bundle.errors import UserError

__all__ = ["RandRegionAppearanced"]


class RandRegionAppearanced(RandomizableTransform, MapTransform):
    """Divides a crop into random regions, and gives each a random map of its intensities.

    A map goes through evenly spaced points with random values. It rises, falls, or does neither, so that bright tissue
    may become dark, or as grey as what lies beside it: contrast says no more how a scan was made. Regions are those
    of random points, each of the voxels next to it, with soft borders; so where an intensity changes says nothing of
    anatomy. Or they are the labels of a map: then a border shows where a label ends, as in images made from labels
    (SynthSeg, arXiv:2107.09559), and a network that has to name these labels can see it there. The crop keeps its mean
    and its deviation.

    Args:
        keys: of the image, ``[C, D, H, W]``; several have the same regions and maps.
        prob: how often.
        regions: how many, from the first number to the second.
        border: width of the borders in voxels; 0 has none.
        points: of a map, from the first number to the second.
        monotone: share of the maps that rise or fall, each as often, all the way.
        strength: the share of the map in the result, from the first number to the second; the rest is the crop.
        label_key: of a label map ``[1, D, H, W]`` whose labels are the regions; None draws regions.

    Raises:
        UserError: if a range does not fit.

    Examples:
        >>> import torch
        >>> change = RandRegionAppearanced("image", prob=1.0).set_random_state(seed=0)
        >>> image = torch.rand(1, 16, 16, 16)
        >>> changed = change({"image": image})["image"]
        >>> changed.shape, torch.allclose(changed.mean(), image.mean(), atol=1e-4)
        (torch.Size([1, 16, 16, 16]), True)
    """

    def __init__(
        self,
        keys: KeysCollection = "image",
        *,
        prob: float = 0.7,
        regions: Sequence[int] = (2, 8),
        border: float = 3.0,
        points: Sequence[int] = (4, 8),
        monotone: float = 0.5,
        strength: Sequence[float] = (0.3, 1.0),
        label_key: str | None = None,
        allow_missing_keys: bool = False,
    ) -> None:
        MapTransform.__init__(self, keys, allow_missing_keys)
        RandomizableTransform.__init__(self, prob)
        for name, (low, high), least in (("regions", regions, 1), ("points", points, 2), ("strength", strength, 0)):
            if not least <= low <= high:
                raise UserError(
                    f"RandRegionAppearanced: {name} {[low, high]} do not fit: give two numbers, the first {least} or "
                    "more, the second no less"
                )
        if strength[1] > 1 or border < 0:
            raise UserError(
                f"RandRegionAppearanced: strength {list(strength)} and border {border} do not fit: give a strength of "
                "at most 1 and a border of 0 or more"
            )
        self.regions, self.border, self.points = tuple(regions), border, tuple(points)
        self.monotone, self.strength, self.label_key = monotone, tuple(strength), label_key

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        item = dict(data)
        self.randomize(None)
        keys = list(self.key_iterator(item))
        if not self._do_transform or not keys:
            return item
        shares = self._draw_regions(item, item[keys[0]].shape[1:])
        strength = self.R.uniform(*self.strength)
        channels = max(len(item[key]) for key in keys)
        maps = [[self._draw_map() for _ in shares] for _ in range(channels)]
        for key in keys:
            images = item[key].as_subclass(Tensor).numpy()
            changed = [_change(image, shares, curves, strength) for image, curves in zip(images, maps)]
            item[key] = torch.from_numpy(np.stack(changed)).to(item[key])
        return item

    def _draw_regions(self, item: Mapping[Hashable, Any], size: Sequence[int]) -> list[np.ndarray]:
        """The share ``[D, H, W]`` that each region has of every voxel."""
        if self.label_key is not None:
            labels = np.asarray(item[self.label_key][0])
            return [(labels == label).astype(np.float32) for label in np.unique(labels)]
        count = self.R.randint(self.regions[0], self.regions[1] + 1)
        distances = [_distance(size, self.R.uniform(0, size)) for _ in range(count)]
        nearest = np.minimum.reduce(distances)
        if self.border == 0:
            shares = [(distance <= nearest).astype(np.float32) for distance in distances]
        else:
            shares = [np.exp((nearest - distance) / (self.border / 2)) for distance in distances]
        whole = np.add.reduce(shares)
        return [share / whole for share in shares]

    def _draw_map(self) -> np.ndarray:
        """Values from 0 to 1 at evenly spaced intensities."""
        values = self.R.uniform(size=self.R.randint(self.points[0], self.points[1] + 1))
        if self.R.uniform() < self.monotone:
            values = np.sort(values)[:: 1 if self.R.uniform() < 0.5 else -1]
        return values


def _distance(size: Sequence[int], point: np.ndarray) -> np.ndarray:
    """From a point to every voxel, in voxels, float32 ``[D, H, W]``."""
    d, h, w = (np.square(np.arange(n, dtype=np.float32) - place) for n, place in zip(size, point))
    return np.sqrt(d[:, None, None] + h[:, None] + w).astype(np.float32)


def _change(image: np.ndarray, shares: Sequence[np.ndarray], maps: Sequence[np.ndarray], strength: float) -> np.ndarray:
    low, high = image.min(), image.max()
    if low == high:
        return image
    scaled = (image - low) / (high - low)
    mapped = np.zeros_like(scaled)
    for share, values in zip(shares, maps):
        mapped += share * np.interp(scaled, np.linspace(0, 1, len(values)), values).astype(scaled.dtype)
    changed = (1 - strength) * scaled + strength * mapped
    deviation = changed.std()
    if deviation < 1e-6:
        return image
    kept: np.ndarray = (changed - changed.mean()) * (image.std() / deviation) + image.mean()
    return kept.astype(image.dtype)
