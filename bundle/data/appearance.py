# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""Strong random changes of a crop's intensities, as pre-training shows it."""

from __future__ import annotations

from monai.config import KeysCollection
from monai.transforms import (
    Compose,
    RandAdjustContrastd,
    RandBiasFieldd,
    RandGaussianNoised,
    RandGaussianSmoothd,
    RandHistogramShiftd,
    RandScaleIntensityd,
    RandShiftIntensityd,
)

__all__ = ["change_appearance"]


def change_appearance(keys: KeysCollection = "image") -> Compose:
    """MONAI's changes of contrast, sharpness, bias, scale, level and noise, in this order.

    They are far stronger than those of fine-tuning: a network that names what it sees under them cannot go by grey
    values alone.

    Args:
        keys: of the images to change, ``[C, D, H, W]``, z-scored or of about that range.
    """
    width = {f"sigma_{axis}": (0.3, 1.2) for axis in "xyz"}
    return Compose([
        RandHistogramShiftd(keys, prob=0.7, num_control_points=(4, 8)),
        RandAdjustContrastd(keys, prob=0.5, gamma=(0.5, 2.0), retain_stats=True),
        RandGaussianSmoothd(keys, prob=0.3, **width),
        RandBiasFieldd(keys, prob=0.3, degree=2, coeff_range=(-0.2, 0.2)),
        RandScaleIntensityd(keys, prob=0.7, factors=0.4),
        RandShiftIntensityd(keys, prob=0.7, offsets=0.4),
        RandGaussianNoised(keys, prob=0.5, std=0.2),
    ])  # fmt: skip
