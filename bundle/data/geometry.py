# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""Spacing, padding to the crop, and the plain tensors that are kept on disk."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.data.utils import compute_shape_offset, zoom_affine
from monai.transforms import InvertibleTransform, MapTransform, Spacing, SpatialPad, SpatialResample

from bundle.cells import valid_cells
from bundle.data.sanity import check_size
from bundle.errors import UserError, VolumeError

__all__ = ["OptionalSpacingd", "PadToCropd", "ToPlainTensorsd", "crop_size"]

#: voxels from which on a volume is resampled by slabs of so many planes
_WHOLE, _PLANES = 2**25, 16
_MASKS = {"foreground", "valid"}


def crop_size(size: Sequence[int], cell: Sequence[int]) -> tuple[int, int, int]:
    """Checks a crop size, voxels per axis, against the encoder's total stride.

    Raises:
        UserError: if an axis is no whole multiple of the stride, or the crop is a single cell.
    """
    if len(size) != 3 or any(s <= 0 or s % c for s, c in zip(size, cell)) or tuple(size) == tuple(cell):
        raise UserError(
            f"--crop_size {list(size)} does not fit: give three whole multiples of the encoder's total stride "
            f"{list(cell)}, and more than one cell in all, such as {[4 * c for c in cell]}"
        )
    d, h, w = size
    return d, h, w


class OptionalSpacingd(MapTransform):
    """Resamples to a voxel size in mm, or does nothing; an axis given as None keeps its own.

    Args:
        keys: of the image.
        pixdim: mm per axis (R, A, S), or None or "own" for the volume's own on all.
        mode: interpolation, as in `monai.transforms.Spacing`.
        keep_finer: an axis whose voxels are smaller than `pixdim` keeps its own.

    Example:
        >>> import torch
        >>> from monai.data import MetaTensor
        >>> from bundle.data import OptionalSpacingd
        >>> image = MetaTensor(torch.rand(1, 10, 10, 4), affine=torch.diag(torch.tensor([1.0, 1, 5, 1])))
        >>> OptionalSpacingd("image", [2, 2, None])({"image": image})["image"].pixdim.tolist()
        [2.0, 2.0, 5.0]
        >>> OptionalSpacingd("image", None)({"image": image})["image"] is image
        True
        >>> OptionalSpacingd("image", [2, 2, 2], keep_finer=True)({"image": image})["image"].pixdim.tolist()
        [1.0, 1.0, 2.0]
    """

    #: not an attribute of the object unless it is set: what volumes are kept under derives from these
    keep_finer = False

    def __init__(
        self,
        keys: KeysCollection = "image",
        pixdim: Sequence[float | None] | str | None = None,
        mode: str = "bilinear",
        *,
        keep_finer: bool = False,
    ) -> None:
        super().__init__(keys)
        wanted = None if pixdim == "own" else pixdim
        if isinstance(wanted, str) or (
            wanted is not None and (len(wanted) != 3 or any(p is not None and p <= 0 for p in wanted))
        ):
            raise UserError(f"--spacing {pixdim} does not fit: give three sizes in mm such as [1, 1, 1], null or own")
        self.pixdim: Sequence[float | None] | None = wanted
        self.mode = mode
        if keep_finer:
            self.keep_finer = True

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        item = dict(data)
        for key in self.key_iterator(item):
            if self.pixdim is not None and any(p is not None for p in self.pixdim):
                current = item[key].pixdim.tolist()
                wanted = [c if p is None else min(p, c) if self.keep_finer else p for p, c in zip(self.pixdim, current)]
                size = [round(n * c / w) for n, c, w in zip(item[key].shape[1:], current, wanted)]
                check_size((len(item[key]), *size), str(item.get("name", "the volume")))
                item[key] = _resample(item[key], wanted, self.mode)
        return item


def _resample(image: MetaTensor, pixdim: Sequence[float], mode: str) -> MetaTensor:
    """As MONAI's `Spacing`, which computes in float64; a large volume by slabs, as that takes five times its memory."""
    if image.numel() <= _WHOLE:
        resampled: MetaTensor = Spacing(pixdim=pixdim, mode=mode, padding_mode="border")(image)
        return resampled
    affine = zoom_affine(np.asarray(image.affine), pixdim, diagonal=False)
    size, offset = compute_shape_offset(image.shape[1:], np.asarray(image.affine), affine)
    affine[:3, 3] = offset
    resample = SpatialResample(mode=mode, padding_mode="border", dtype=torch.float64)
    result = torch.empty((len(image), *size), dtype=torch.float32)
    step, last = pixdim[2] / float(image.pixdim[2]), image.shape[3] - 1
    for first in range(0, size[2], _PLANES):
        end = min(first + _PLANES, size[2])
        low, high = min(last, max(0, math.floor(first * step) - 1)), min(last, math.ceil((end - 1) * step) + 1)
        slab = MetaTensor(image.as_tensor()[..., low : high + 1], affine=_moved(image.affine, low))
        part = resample(slab, dst_affine=_moved(affine, first), spatial_size=(*size[:2], end - first))
        result[..., first:end] = part.as_tensor()
    more = {key: value for key, value in image.meta.items() if key != "affine"}
    return MetaTensor(result, affine=torch.as_tensor(affine), meta=more)


def _moved(affine: np.ndarray | torch.Tensor, planes: int) -> torch.Tensor:
    """The affine of the part of a volume that begins so many planes of the last axis further on."""
    moved = torch.as_tensor(affine, dtype=torch.float64).clone()
    moved[:3, 3] += planes * moved[:3, 2]
    return moved


class PadToCropd(MapTransform, InvertibleTransform):
    """Pads a volume smaller than the crop, on both sides alike, and marks what is real under the key `valid`.

    The padding has each channel's lowest value, which is air or background, unless another one is given, and is not
    foreground. MONAI's `Invertd` takes it off.

    Args:
        keys: of the image; `foreground`, and `weight_map` and `label` maps if there are any, are padded along.
        spatial_size: of the crop, voxels per axis.
        cell: voxels of a cell on each axis.
        value: of the padding; None takes each channel's lowest.

    Raises:
        VolumeError: for a volume that fills fewer than two cells, so that no part of it could be hidden.

    Example:
        >>> import torch
        >>> from bundle.data import PadToCropd
        >>> item = PadToCropd("image", spatial_size=(6, 6, 6))({"image": torch.ones(1, 6, 4, 8), "name": "scan"})
        >>> item["image"].shape, item["valid"][0, 0, :, 0].tolist()
        (torch.Size([1, 6, 6, 8]), [0, 1, 1, 1, 1, 0])
    """

    def __init__(
        self,
        keys: KeysCollection = "image",
        *,
        spatial_size: Sequence[int],
        cell: Sequence[int] = (1, 1, 1),
        value: float | None = None,
    ) -> None:
        super().__init__(keys)
        self.pad, self.cell, self.value = SpatialPad(spatial_size), tuple(cell), value

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        item = dict(data)
        image = item[self.first_key(item)]
        item["valid"] = self.pad(torch.ones(image[:1].shape, dtype=torch.uint8), value=0)
        if self._count_cells(item["valid"], padded=item["valid"].shape[1:] != image.shape[1:]) < 2:
            raise VolumeError(
                str(item.get("name", "the volume")),
                f"has {' x '.join(map(str, image.shape[1:]))} voxels, less than two cells of the encoder's stride",
                "set a finer --spacing or leave it out",
            )
        for key in {"foreground", "weight_map", "label"} & item.keys():
            if item[key].ndim == image.ndim:  # a label may be a list of findings
                item[key] = self.pad(item[key], value=0)
        for key in self.key_iterator(item):
            channels = [
                self.pad(channel, value=float(channel.min()) if self.value is None else self.value)
                for channel in item[key].split(1)
            ]
            item[key] = channels[0] if len(channels) == 1 else torch.cat(channels)
        return item

    def _count_cells(self, valid: torch.Tensor, *, padded: bool) -> int:
        if padded:
            return int(valid_cells(valid[None], self.cell).sum())
        return math.prod(size // cell for size, cell in zip(valid.shape[1:], self.cell))

    def inverse(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Takes the padding off."""
        item = dict(data)
        for key in self.key_iterator(item):
            item[key] = self.pad.inverse(item[key])
        return item


class ToPlainTensorsd(MapTransform):
    """Keeps the volume as plain tensors: masks and label maps as uint8, all else as float32, and `spacing` [3] in mm.

    File names, affine and every other piece of metadata are dropped: what is cached cannot name a patient. What the
    reader notes of a volume, such as slices that were left out, stays as `notes`, the bytes of a text; and the values
    of a label map that no class has as `other_values`, int64 ``[N]``.
    """

    def __init__(
        self, keys: KeysCollection = ("image", "foreground", "valid"), allow_missing_keys: bool = False
    ) -> None:
        super().__init__(keys, allow_missing_keys)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        first = data[self.first_key(dict(data))]
        spacing = first.pixdim if isinstance(first, MetaTensor) else torch.ones(3)
        plain: dict[Hashable, Any] = {"spacing": torch.as_tensor(spacing, dtype=torch.float32).clone()}
        for key in self.key_iterator(dict(data)):
            tensor = data[key].as_tensor() if isinstance(data[key], MetaTensor) else data[key]
            is_mask = key in _MASKS or tensor.dtype == torch.uint8
            plain[key] = tensor.to(torch.uint8 if is_mask else torch.float32).contiguous()
            if isinstance(data[key], MetaTensor) and data[key].meta.get("other_values"):
                plain["other_values"] = torch.tensor(data[key].meta["other_values"], dtype=torch.int64)
        plain["modality"] = data["modality"]
        if isinstance(first, MetaTensor) and first.meta.get("notes"):
            plain["notes"] = torch.tensor(list("; ".join(first.meta["notes"]).encode()), dtype=torch.uint8)
        return plain
