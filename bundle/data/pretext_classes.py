# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""Classes of voxels made from the scans themselves, for a pretext segmentation: nobody labels anything."""

from __future__ import annotations

import json
import logging
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from monai.config import KeysCollection
from monai.transforms import MapTransform
from scipy.cluster.vq import kmeans2
from scipy.ndimage import gaussian_filter1d
from torch import Tensor
from tqdm import tqdm

from bundle.atomic import replace_file
from bundle.data.crops import RandForegroundCropd
from bundle.data.prepared_volume import PreparedVolume
from bundle.errors import UserError
from bundle.ranks import is_distributed, this_rank

__all__ = ["PretextClasses", "PretextClassesd", "fit_pretext_classes", "voxel_features"]

logger = logging.getLogger(__name__)

_SMOOTHED = (0.0, 1.0, 2.0, 4.0)  # deviations of the Gaussian, voxels
_EDGES = (1.0, 2.0)
_LEVELS = 64  # intensities at which a modality's distribution is kept
_PLACE = "place"
_AT_ONCE = 16_384  # voxels


@dataclass(frozen=True)
class PretextClasses:
    """Classes of voxels: 0 outside the body, the others nearest to one of the centres of a k-means.

    Attributes:
        centres: ``[classes - 1][features]``, in deviations of the features.
        mean: of each feature.
        deviation: of each feature; of one with another weight, over that weight.
        levels: evenly spaced quantiles of the intensities of the body, by modality: intensities are compared by rank.
    """

    centres: Sequence[Sequence[float]]
    mean: Sequence[float]
    deviation: Sequence[float]
    levels: Mapping[str, Sequence[float]]

    @property
    def count(self) -> int:
        """How many there are, the outside included."""
        return len(self.centres) + 1

    def classify(self, features: Tensor, foreground: Tensor) -> Tensor:
        """Features ``[F, D, H, W]`` and the body ``[1, D, H, W]`` to classes, uint8 ``[1, D, H, W]``."""
        mean, deviation, centres = (torch.tensor(values) for values in (self.mean, self.deviation, self.centres))
        # the square of the distance, less that of the voxel's own features, which is the same for all centres
        slope = -2 * centres / deviation
        offset = (centres.square().sum(1) - slope @ mean)[:, None]
        # in pieces that stay in a core's cache; min's indices are much faster than argmin along this axis
        parts = features.flatten(1).split(_AT_ONCE, dim=1)
        nearest = torch.cat([torch.addmm(offset, slope, part).min(0).indices.to(torch.uint8) for part in parts])
        return torch.where(foreground > 0, nearest.reshape(foreground.shape) + 1, 0)


def voxel_features(image: Tensor, levels: Sequence[float], place: Tensor) -> Tensor:
    """What a voxel's class is made from.

    The image by rank, smoothed at 0, 1, 2 and 4 voxels; the size of its gradient at 1 and 2; the place in the body.

    Args:
        image: ``[1, D, H, W]``, prepared.
        levels: quantiles of the modality's intensities.
        place: ``[3, 2]``, where the first and the last voxel of each axis lie in the body, from 0 to 1.

    Returns:
        ``[9, D, H, W]``.
    """
    ranks = torch.bucketize(image[0].float().contiguous(), torch.tensor(levels)) / len(levels)
    smooth = [ranks if width == 0 else _gaussian(ranks, width) for width in _SMOOTHED]
    slopes = [[_gaussian(ranks, width, along=axis) for axis in range(3)] for width in _EDGES]
    edges = [torch.stack(parts).square().sum(0).sqrt() for parts in slopes]
    ends = zip(place.tolist(), image.shape[1:])
    axes = [torch.linspace(first, last, size) for (first, last), size in ends]
    return torch.stack([*smooth, *edges, *torch.meshgrid(*axes, indexing="ij")])


def _gaussian(image: Tensor, width: float, *, along: int | None = None) -> Tensor:
    """``[D, H, W]`` smoothed by a Gaussian, or its derivative along an axis: scipy's, several times as fast."""
    for axis, size in enumerate(image.shape):
        matrix = _gaussian_matrix(size, width, order=int(axis == along))
        image = torch.tensordot(image, matrix, dims=([0], [1]))  # the axes take turns: the first one becomes the last
    return image


@lru_cache(maxsize=64)
def _gaussian_matrix(size: int, width: float, order: int) -> Tensor:
    """``[size, size]``, scipy's Gaussian filter of one axis. For sides as short as a crop's a product is fastest."""
    # the nearest voxel goes on beyond the crop's border: zeros would be dark tissue
    return torch.from_numpy(gaussian_filter1d(np.eye(size, dtype=np.float32), width, 0, order=order, mode="nearest"))


class PretextClassesd(MapTransform):
    """Adds the class of every voxel of a crop, uint8 ``[1, D, H, W]``.

    It belongs right behind the crop, before mirrors and changes of intensities: the class is that of the scan as it is.
    A crop of a modality that the classes were not fitted on counts its intensities by their rank in its own body, and a
    warning says so once.

    Args:
        keys: of the image.
        classes: fitted ones; None adds nothing.
        name: key of the result.

    Raises:
        UserError: if the crop does not say where it lies.
    """

    def __init__(
        self, keys: KeysCollection = "image", *, classes: PretextClasses | None, name: str = "pretext_class"
    ) -> None:
        super().__init__(keys)
        self.classes, self.name = classes, name
        self._strange: set[str] = set()

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        item = dict(data)
        if self.classes is None:
            return item
        if _PLACE not in item:
            raise UserError("pretext classes need the place of the crop: set place_key: place in RandForegroundCropd")
        image, body = item[self.first_key(item)].as_subclass(Tensor), item["foreground"].as_subclass(Tensor)
        levels = self._levels(self.classes, item["modality"], image[:1][body > 0])
        features = voxel_features(image, levels, item[_PLACE])
        item[self.name] = self.classes.classify(features, body)
        return item

    def _levels(self, classes: PretextClasses, modality: str, inside: Tensor) -> Sequence[float]:
        if modality in classes.levels:
            return classes.levels[modality]
        if modality not in self._strange:
            self._strange.add(modality)
            logger.warning("pretext classes were made from no %s: each crop of it is ranked by itself", modality)
        # a sample is enough, and torch takes no more than 16 million
        return _quantiles(inside[:: len(inside) // 100_000 + 1] if len(inside) else torch.zeros(1))


def fit_pretext_classes(
    volumes: Sequence[PreparedVolume],
    *,
    crop_size: Sequence[int],
    file: Path,
    classes: int = 32,
    crops_per_volume: int = 2,
    voxels_per_crop: int = 1000,
    most_volumes: int = 200,
    place_weight: float = 1.0,
    seed: int = 0,
    keep: bool = False,
) -> PretextClasses:
    """Fits classes to crops of the volumes, or reads those that the run was trained with.

    A k-means with `classes` - 1 centres on the features of voxels of the body. Under torchrun the first process fits
    and hands the result to the others.

    Args:
        volumes: to train on.
        crop_size: voxels per axis.
        file: where the classes are kept.
        classes: how many, the outside included.
        crops_per_volume: to draw voxels from.
        voxels_per_crop: at most.
        most_volumes: of a larger archive so many are drawn, of every modality as many as there are or as of the others:
            the crops are in memory together.
        place_weight: of the place in the body, where each of the other features has 1. With more, classes become
            compact regions; with 0 they are appearance alone.
        seed: of the draw and of the k-means.
        keep: reads the classes in `file`, which the run that goes on, or is evaluated, was trained with. Else a file
            there is of a start that failed, perhaps of other volumes, and is written anew.

    Raises:
        UserError: for less than three or more than 256 classes, for a negative weight, or if the volumes have too few
            voxels for them.
    """
    if not 3 <= classes <= 256:
        raise UserError(f"{classes} pretext classes cannot be: set pretext_classes#classes to 3 up to 256")
    if place_weight < 0:
        raise UserError(f"place_weight {place_weight} cannot be: set pretext_classes#place_weight to 0 or more")
    shared: list[Any] = [None]
    if this_rank() == 0:
        if keep and not file.exists():
            logger.warning("%s is not there: the pretext classes are made anew", file)
        if not (keep and file.exists()):
            draw = RandForegroundCropd(
                ["image", "foreground"], spatial_size=crop_size, min_foreground=0.3, place_key=_PLACE
            )
            crops = _draw(_choose(volumes, most_volumes, seed), draw, crops_per_volume, seed)
            fitted = _fit(crops, classes, voxels_per_crop, place_weight, seed)
            with replace_file(file) as temporary:
                temporary.write_text(json.dumps(asdict(fitted), indent=1))
        shared = [_read(file)]
    if is_distributed():
        dist.broadcast_object_list(shared, src=0)
    found: PretextClasses = shared[0]
    if found.count != classes:
        raise UserError(f"{file} has {found.count} classes and the config asks for {classes}: set both alike")
    return found


def _read(file: Path) -> PretextClasses:
    try:
        return PretextClasses(**json.loads(file.read_text()))
    except (ValueError, TypeError) as error:
        raise UserError(
            f"{file} is damaged, and the run cannot go on without its classes: put a copy there, or start a new run"
        ) from error


def _choose(volumes: Sequence[PreparedVolume], most: int, seed: int) -> list[PreparedVolume]:
    """All volumes, or of more than `most` so many, one of each modality after the other."""
    if len(volumes) <= most:
        return list(volumes)
    order = np.random.default_rng(seed).permutation(len(volumes))
    turns: dict[str, int] = {}
    ranked = []
    for number in order:
        modality = volumes[number].modality
        turns[modality] = turns.get(modality, 0) + 1
        ranked.append((turns[modality], int(number)))
    return [volumes[number] for _, number in sorted(ranked)[:most]]


def _quantiles(values: Tensor) -> list[float]:
    levels: list[float] = values.float().quantile(torch.linspace(0, 1, _LEVELS)).tolist()
    return levels


def _draw(volumes: Sequence[PreparedVolume], draw: RandForegroundCropd, crops: int, seed: int) -> list[dict[str, Any]]:
    """Crops of all volumes, the same ones for the same seed; a volume that cannot be read is left out."""
    found = []
    for number, volume in enumerate(tqdm(volumes, desc="crops for pretext classes")):
        draw.set_random_state(seed=(seed * 1_000_003 + number) % 2**32)
        try:
            found += [draw.read(volume) for _ in range(crops)]
        except (OSError, RuntimeError, UserError) as error:
            logger.warning("%s is left out of the pretext classes: %s", volume.name, error)
    return found


def _fit(
    crops: Sequence[Mapping[str, Any]], classes: int, voxels: int, place_weight: float, seed: int
) -> PretextClasses:
    generator = np.random.default_rng(seed)
    body = [np.flatnonzero(crop["foreground"].numpy()) for crop in crops]
    drawn = [generator.choice(place, min(voxels, len(place)), replace=False) for place in body]
    values: dict[str, list[Tensor]] = {}
    for crop, place in zip(crops, drawn):
        values.setdefault(crop["modality"], []).append(crop["image"].flatten()[place])
    levels = {modality: _quantiles(torch.cat(found)) for modality, found in values.items()}
    rows = [
        voxel_features(crop["image"], levels[crop["modality"]], crop[_PLACE]).flatten(1).T[place].numpy()
        for crop, place in zip(tqdm(crops, desc="features for pretext classes"), drawn)
    ]
    features = np.concatenate(rows) if rows else np.empty((0, 1))
    if len(features) < 10 * classes:
        raise UserError(
            f"{len(features)} voxels of bodies are too few for {classes} pretext classes: give more volumes, or less "
            "pretext_classes#classes"
        )
    mean, deviation = features.mean(0), features.std(0).clip(1e-6)
    deviation[-3:] /= max(place_weight, 1e-6)
    centres, _ = kmeans2((features - mean) / deviation, classes - 1, iter=30, minit="++", seed=seed)
    return PretextClasses(centres.tolist(), mean.tolist(), deviation.tolist(), levels)
