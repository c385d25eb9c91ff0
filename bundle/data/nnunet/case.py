# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""One case as nnU-Net feeds it: what it has preprocessed, or a scan that is prepared here as nnU-Net would."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform, Orientation

from bundle.data.intensity import Foregroundd
from bundle.data.intensity_scheme import NormalizeBySchemed, filled_nonzero
from bundle.data.names import name_digest
from bundle.data.nnunet.arrays import SUFFIXES, open_array, read_part
from bundle.data.nnunet.plan import Plan
from bundle.data.nnunet.resample import resample
from bundle.data.read import ReadVolumed
from bundle.errors import UserError, VolumeError

__all__ = ["ReadCased"]

_RESAMPLING = "resample_data_or_seg_to_shape"
_WHOLE = (slice(None),) * 3


class ReadCased(MapTransform):
    """Reads a case to the array that nnU-Net's training sees, a `MetaTensor` ``[C, D, H, W]`` in the plan's axes.

    A `.b2nd` or `.npz` is what `nnUNetv2_preprocess` wrote, taken as it is; under `source` is then a digest of its
    name, by which `CaseStore` finds it again. Another file is a scan. It goes through what nnU-Net's preprocessor does,
    in its order: axes, crop to what is not 0, intensities, spacing.

    Also gives `modality`, and `foreground` uint8 ``[1, D, H, W]``: brighter than Otsu's threshold of the first channel
    or its mean, the largest part, with holes filled. It says where crops are taken; nnU-Net has no such mask.

    Args:
        keys: of the files.
        plan: what to read, and how.

    Raises:
        UserError: if the plan resamples by what is not known here and a scan is given.
        VolumeError: for a file that cannot be read, or is not of this plan.
    """

    def __init__(self, keys: KeysCollection = "image", *, plan: Plan) -> None:
        super().__init__(keys)
        self.plan = plan
        self.read, self.normalize = (
            ReadVolumed(keys, channels=plan.channels),
            NormalizeBySchemed(keys, scheme=_whole(plan)),
        )

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        item, name = dict(data), str(data["name"])
        for key in self.key_iterator(item):
            (first, *_) = files = item[key]
            if len(files) == 1 and Path(first).suffix in SUFFIXES:
                item[key] = self._with_spacing(_preprocessed(first, self.plan, name))
                item["source"] = torch.tensor(list(name_digest(Path(first).stem).encode()), dtype=torch.uint8)
            else:
                item = self._prepared(item, key, name)
            item["modality"] = self.plan.modality
            # values after the normalisation have no unit, as those of MR
            found = Foregroundd(key)({key: item[key][:1], "modality": "MR", "name": name})
            item["foreground"] = found["foreground"]
        return item

    def _with_spacing(self, array: np.ndarray) -> MetaTensor:
        return MetaTensor(torch.from_numpy(array), affine=torch.diag(torch.tensor([*self.plan.spacing, 1.0])))

    def _prepared(self, item: dict[Hashable, Any], key: Hashable, name: str) -> dict[Hashable, Any]:
        plan = self.plan
        if plan.resampling != _RESAMPLING:
            raise UserError(
                f"the plan {plan.name} resamples by {plan.resampling}, which is not known here: run "
                "nnUNetv2_preprocess and give its folder as --dataset_dir"
            )
        item = self.read(item)
        image = item[key]
        notes = image.meta.get("notes")
        if plan.reorients:
            image = Orientation(axcodes="RAS", labels=None)(image)
        order = [2 - axis for axis in plan.transpose]  # nnU-Net reads slices, rows, columns
        spacing = [float(image.pixdim[axis]) for axis in order]
        array = image.as_tensor().permute(0, *(1 + axis for axis in order)).numpy()
        inside = filled_nonzero(array)
        box = tuple(slice(int(at.min()), int(at.max()) + 1) for at in np.nonzero(inside))
        place = (slice(None), *box)
        array, inside = np.ascontiguousarray(array[place]), inside[box]
        normal = self.normalize({key: torch.from_numpy(array), "name": name})[key].numpy()
        for channel, masked in enumerate(plan.masked):
            if masked and plan.schemes[channel] == "ZScoreNormalization":
                normal[channel] = _inside(array[channel], inside)
        options = {key: value for key, value in plan.resampling_options.items() if key in _OPTIONS}
        item[key] = self._with_spacing(resample(normal, spacing, plan.spacing, **options))
        if notes:
            item[key].meta["notes"] = notes
        return item


_OPTIONS = ("order", "order_z", "force_separate_z")


def _whole(plan: Plan) -> list[dict[str, Any]]:
    """The plan's schemes for an array that is cropped already."""
    return [{**one, "over": "volume"} if one["kind"] == "z_score" else one for one in plan.intensity_scheme]


def _inside(image: np.ndarray, inside: np.ndarray) -> np.ndarray:
    values = image[inside]
    deviation = max(float(values.std(dtype=np.float64)), 1e-8)
    normal = image.copy()
    normal[inside] = (values - float(values.mean(dtype=np.float64))) / deviation
    return normal


def _preprocessed(file: str, plan: Plan, name: str) -> np.ndarray:
    try:
        array = open_array(file)
        shape, values = tuple(array.shape), read_part(array, _WHOLE)
    except ImportError as error:
        raise UserError(f"{file} needs the package blosc2: python -m pip install -c constraints.txt blosc2") from error
    except Exception as error:  # the readers raise anything on a damaged file
        reason = (str(error).strip().splitlines() or [type(error).__name__])[-1]
        raise VolumeError(name, f"cannot be read ({reason})", "preprocess it again with nnUNetv2_preprocess") from error
    if len(shape) != 4 or shape[0] != plan.channels:
        raise VolumeError(
            name,
            f"has the shape {list(shape)}, and {plan.name} has {plan.channels} channel(s)",
            "give the plan and the folder of one data set",
        )
    if not np.isfinite(values).all():
        raise VolumeError(name, "holds voxels that are NaN or infinite", "preprocess it again or leave it out")
    return values
