# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""CT or MR, body or air, and intensities that a network can work with."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.transforms import MapTransform

from bundle.data.body import fill_axial_holes, find_largest_part, find_otsu_threshold
from bundle.errors import UserError, VolumeError

__all__ = ["Foregroundd", "Modalityd", "NormalizeByModalityd"]

#: a volume with this much of it below this many units is CT: MR has no large negative values, CT air is -1000 HU
_CT_BELOW, _CT_SHARE = -100.0, 0.005
_Normalized = tuple[torch.Tensor, float, float]  # the image, offset and scale
_CT_BODY = -500.0  # HU between air and everything else


class Modalityd(MapTransform):
    """Settles whether a volume is CT or MR, under the key `modality`.

    `modality` "CT" or "MR" here overrides all. With "auto", what the DICOM tag or the data list says holds; else a
    volume is CT if at least 0.5 % of its voxels are below -100.

    Args:
        keys: of the image.
        modality: "auto", "CT" or "MR".

    Example:
        >>> import torch
        >>> from bundle.data import Modalityd
        >>> air = torch.full((1, 4, 4, 4), -1000.0)
        >>> Modalityd()({"image": air})["modality"], Modalityd()({"image": air + 1000})["modality"]
        ('CT', 'MR')
        >>> Modalityd()({"image": air, "modality": "MR"})["modality"]
        'MR'
    """

    def __init__(self, keys: KeysCollection = "image", modality: str = "auto") -> None:
        super().__init__(keys)
        if modality not in ("auto", "CT", "MR"):
            raise UserError(f"--modality {modality!r} is not known: choose auto, CT or MR")
        self.modality = modality

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        item = dict(data)
        if self.modality != "auto":
            item["modality"] = self.modality
        elif not item.get("modality"):
            image = item[self.first_key(item)][:1]  # of several channels the first tells
            share = int(torch.count_nonzero(image < _CT_BELOW)) / image.numel()
            item["modality"] = "CT" if share >= _CT_SHARE else "MR"
        return item


class Foregroundd(MapTransform):
    """Finds the body, under the key `foreground`, uint8 ``[1, D, H, W]``: expects axes to RAS.

    CT above -500 HU, MR above Otsu's threshold of its 0.5 to 99.5 percentiles, or its mean if lower; of that the
    largest connected part (the table and noise go), with its holes filled axial slice by slice (lungs and sinuses
    belong to the body).

    Args:
        keys: of the image, in units of the file.

    Example:
        >>> import torch
        >>> from monai.data import MetaTensor
        >>> from bundle.data import Foregroundd
        >>> image = MetaTensor(torch.full((1, 8, 8, 8), -1000.0))  # air
        >>> image[:, 2:6, 2:6, 2:6] = 40.0  # the body
        >>> image[:, 3, 3, 3] = -900.0  # a hole in it
        >>> image[:, 0, 0, 0] = 1000.0  # a speck of noise
        >>> foreground = Foregroundd()({"image": image, "modality": "CT", "name": "scan"})["foreground"]
        >>> int(foreground.sum()), int(foreground[0, 3, 3, 3]), int(foreground[0, 0, 0, 0])
        (64, 1, 0)
    """

    def __init__(self, keys: KeysCollection = "image") -> None:
        super().__init__(keys)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        item = dict(data)
        image = item[self.first_key(item)]
        above = np.ascontiguousarray(image[0].cpu().numpy() > _threshold(image, item["modality"]))
        if not above.any():
            raise VolumeError(
                str(item.get("name", "the volume")), "shows no body, only background", "leave it out or set --modality"
            )
        body = fill_axial_holes(find_largest_part(above))
        item["foreground"] = type(image)(torch.from_numpy(body[None].astype(np.uint8)), affine=image.affine)
        return item


class NormalizeByModalityd(MapTransform):
    """Brings CT and MR to a common scale.

    CT is clipped to a window in HU and mapped to [-1, 1], so that air is -1 and a HU means the same in every volume.
    MR, which has no units, is clipped to percentiles of its foreground and z-scored on it, so that its mean is 0 and
    standard deviation 1 there. Clipping bounds the background too, `mr_floor` deviations below the foreground. Each
    channel of several is treated so by itself.

    In a volume cut out around one organ the foreground is the bright tissue alone. There a floor of 3 deviations makes
    all dark tissue alike: half of the voxels of a hippocampus, for example. None keeps dark tissue apart.

    Under the key `intensity` is how to get back to the file's units, but for the clipping: ``value * scale + offset``.

    Args:
        keys: of the image.
        ct_window: HU, lowest and highest.
        mr_percentiles: of the foreground, lowest and highest.
        mr_floor: deviations below the foreground's mean to which the background is kept; None keeps it down to the
            lower percentile of the whole volume.

    Example:
        >>> import torch
        >>> from bundle.data import NormalizeByModalityd
        >>> hounsfield = torch.tensor([-2000.0, -1000.0, 0.0, 1000.0, 3000.0]).view(1, 1, 1, 5)
        >>> item = {"image": hounsfield, "foreground": hounsfield > -500, "modality": "CT", "name": "scan"}
        >>> NormalizeByModalityd(ct_window=(-1000, 1000))(item)["image"].flatten().tolist()
        [-1.0, -1.0, 0.0, 1.0, 1.0]
    """

    def __init__(
        self,
        keys: KeysCollection = "image",
        ct_window: Sequence[float] = (-1000.0, 1000.0),
        mr_percentiles: Sequence[float] = (0.5, 99.5),
        mr_floor: float | None = 3.0,
    ) -> None:
        super().__init__(keys)
        self.ct_window, self.mr_percentiles = tuple(ct_window), tuple(mr_percentiles)
        if mr_floor is not None and mr_floor <= 0:
            raise UserError(f"--mr_floor {mr_floor} does not fit: give a number of deviations such as 3, or null")
        self.mr_floor = mr_floor
        for option, (low, high) in (("ct_window", self.ct_window), ("mr_percentiles", self.mr_percentiles)):
            if low >= high:
                raise UserError(f"{option} {[low, high]} is empty: give the lower value first")

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        item = dict(data)
        for key in self.key_iterator(item):
            normalize = self._ct if item["modality"] == "CT" else self._mr
            image, foreground = item[key].float(), item["foreground"] > 0
            name = str(item.get("name", "the volume"))
            channels, offsets, scales = zip(*(normalize(channel, foreground, name) for channel in image.split(1)))
            item[key] = channels[0] if len(channels) == 1 else torch.cat(channels)
            item["intensity"] = {"offset": offsets[0], "scale": scales[0]}  # of the first channel
        return item

    def _ct(self, image: torch.Tensor, foreground: torch.Tensor, name: str) -> _Normalized:  # noqa: ARG002
        low, high = self.ct_window
        normalized = image.clamp(low, high).sub_(low).mul_(2 / (high - low)).sub_(1)  # one copy, not four
        return normalized, (low + high) / 2, (high - low) / 2

    def _mr(self, image: torch.Tensor, foreground: torch.Tensor, name: str) -> _Normalized:
        inside = image[foreground].numpy()
        low, high = np.percentile(inside, self.mr_percentiles)
        inside = inside.clip(low, high)
        deviation = float(inside.std(dtype=np.float64))
        if deviation < 1e-6 * max(1.0, abs(high)):
            raise VolumeError(name, "is constant inside the body", "leave it out")
        # the background may lie below the foreground's percentiles: clipped only where it is far from all tissue
        mean = float(inside.mean(dtype=np.float64))
        if self.mr_floor is None:
            floor = float(np.percentile(image.numpy(), self.mr_percentiles[0]))
        else:
            floor = mean - self.mr_floor * deviation
        low = min(low, floor)
        return image.clamp(low, high).sub_(mean).div_(deviation), mean, deviation


def _threshold(image: torch.Tensor, modality: str) -> float:
    if modality == "CT":
        return _CT_BODY
    array = np.ascontiguousarray(image[0].cpu().numpy())
    low, high = np.percentile(array, (0.5, 99.5))
    otsu = find_otsu_threshold(array.clip(low, high))
    # where little air is in view, Otsu divides bright tissue from dark; the mean then keeps more of the body
    return min(otsu, float(array.mean(dtype=np.float64)))
