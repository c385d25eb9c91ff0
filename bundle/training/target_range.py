# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""Whether the intensities of the volumes are among those that the reconstruction tells apart, said at the start."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from ignite.engine import Engine, Events
from torch import Tensor

from bundle.data import PreparedVolume, RandForegroundCropd
from bundle.errors import UserError
from bundle.losses import Histogram, ReconstructionLoss
from bundle.runs.distributed import is_main_rank

__all__ = ["TargetRange"]

logger = logging.getLogger(__name__)

_TOLD = 0.05  # of a modality's voxels; a little is always beyond, as vessels are


@dataclass(frozen=True)
class _Crop:
    """A crop of a volume: how many of its voxels one bin holds though they differ, and its extremes."""

    volume: PreparedVolume
    voxels: int
    merged: int
    low: float
    high: float


class TargetRange:
    """Warns where much of what is to be reconstructed lies beyond the histogram's range, and there becomes one value.

    A background of one value loses nothing by that, and is not counted. One crop each of some volumes is looked at,
    drawn as for training. Nothing is done where the loss has no histogram, or its target is scaled crop by crop.

    Args:
        reconstruction: the loss.
        volumes: to train on.
        crop_size: voxels per axis.
        most_volumes: to look at, evenly over all; a crop takes some milliseconds.
    """

    def __init__(
        self,
        *,
        reconstruction: ReconstructionLoss,
        volumes: Sequence[PreparedVolume],
        crop_size: Sequence[int],
        most_volumes: int = 50,
    ) -> None:
        self.histogram = reconstruction.histogram if reconstruction.target == "none" else None
        self.volumes = volumes[:: math.ceil(len(volumes) / most_volumes)] if volumes else []
        self.draw = RandForegroundCropd(["image", "valid", "foreground"], spatial_size=crop_size)

    def attach(self, engine: Engine) -> None:
        """Registers with the trainer."""
        if is_main_rank():
            engine.add_event_handler(Events.STARTED, self._report)

    def _report(self) -> None:
        if self.histogram is None:
            return
        crops: dict[str, list[_Crop]] = {}
        for crop in self._look(self.histogram):
            crops.setdefault(crop.volume.modality, []).append(crop)
        for modality, found in crops.items():
            _warn(modality, found, self.histogram)

    def _look(self, histogram: Histogram) -> Iterator[_Crop]:
        for number, volume in enumerate(self.volumes):
            self.draw.set_random_state(seed=number)
            try:
                crop = self.draw.read(volume)
            except (OSError, RuntimeError, UserError):
                continue  # training says it where it meets the volume
            valid = crop["valid"].expand_as(crop["image"]) > 0
            values = crop["image"].as_subclass(Tensor)[valid].float()
            if len(values):
                low, high = (limit.item() for limit in torch.aminmax(values))
                yield _Crop(volume, len(values), histogram.merged(values), low, high)


def _warn(modality: str, crops: Sequence[_Crop], histogram: Histogram) -> None:
    share = sum(crop.merged for crop in crops) / sum(crop.voxels for crop in crops)
    if share < _TOLD:
        return
    width = (histogram.high - histogram.low) / (histogram.bins - 1)
    low = min(histogram.low, math.floor(min(crop.low for crop in crops)))
    high = max(histogram.high, math.ceil(max(crop.high for crop in crops)))
    bins = round((high - low) / width) + 1
    most = max(crops, key=lambda crop: crop.merged / crop.voxels).volume
    logger.warning(
        "%s: %.0f%% of the voxels lie beyond the intensities that the reconstruction tells apart, %g to %g, most of "
        "them in %s: they differ, and are reconstructed as one. If they are tissue, cover them: "
        "--loss#reconstruction#histogram#low %g --loss#reconstruction#histogram#high %g "
        "--loss#reconstruction#histogram#bins %d --decoder#channels %d",
        modality, 100 * share, histogram.low, histogram.high, most.name, low, high, bins, bins,
    )  # fmt: skip
