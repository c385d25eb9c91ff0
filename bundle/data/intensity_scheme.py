# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""Intensities as other people's weights expect them."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.transforms import MapTransform
from scipy import ndimage

from bundle.data.intensity import NormalizeByModalityd
from bundle.errors import UserError, VolumeError

__all__ = ["NormalizeBySchemed", "filled_nonzero", "normalization"]

_Scheme = Mapping[str, Any]
_Normalized = tuple[torch.Tensor, float, float]  # the image, offset and scale


class NormalizeBySchemed(MapTransform):
    """Brings intensities to the scale of weights from elsewhere, whatever the modality.

    A scheme says how, by its `kind`:

    - "range": clipped to `window`, then mapped to `to`, such as ``{kind: range, window: [-1024, 2048], to: [0, 1]}``;
    - "z_score": minus the mean, divided by the standard deviation. `over` says of what: "volume"; "nonzero", the voxels
      that are not 0; "nonzero_box", all voxels of the smallest box with those in it, which is what nnU-Net does; or
      "inside", those that are not 0 and the holes in them, where the others stay 0: nnU-Net's `use_mask_for_norm`;
    - "statistics": clipped to `window`, minus `mean`, divided by `deviation`, which is nnU-Net's scheme for CT;
    - "rescale": from the lowest to the highest value, mapped to [0, 1];
    - "none": as it is.

    Under the key `intensity` is how to get back to the file's units, but for the clipping: ``value * scale + offset``,
    of the first channel.

    Args:
        keys: of the image, ``[C, D, H, W]``.
        scheme: for all channels, or a list with one for each channel.

    Raises:
        UserError: for a scheme that is not known, or lacks a value.

    Example:
        >>> import torch
        >>> from bundle.data import NormalizeBySchemed
        >>> image = torch.tensor([-2000.0, -1024.0, 512.0, 3000.0]).view(1, 1, 1, 4)
        >>> normalize = NormalizeBySchemed(scheme={"kind": "range", "window": [-1024, 2048], "to": [0, 1]})
        >>> normalize({"image": image, "name": "scan"})["image"].flatten().tolist()
        [0.0, 0.0, 0.5, 1.0]
    """

    def __init__(self, keys: KeysCollection = "image", *, scheme: _Scheme | Sequence[_Scheme]) -> None:
        super().__init__(keys)
        self.schemes = [dict(one) for one in ([scheme] if isinstance(scheme, Mapping) else scheme)]
        for one in self.schemes:
            _check(one)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        item = dict(data)
        for key in self.key_iterator(item):
            image, name = item[key].float(), str(item.get("name", "the volume"))
            schemes = self.schemes * (len(image) if len(self.schemes) == 1 else 1)
            if len(schemes) != len(image):
                raise VolumeError(
                    name,
                    f"has {len(image)} channels, but there are {len(schemes)} intensity schemes",
                    "give one scheme, or one for each channel, by --settings#intensity_scheme, or in pre-training "
                    "--preparation#intensity_scheme",
                )
            channels, offsets, scales = zip(*(
                _KINDS[one["kind"]][0](channel, one, name) for channel, one in zip(image.split(1), schemes, strict=True)
            ))  # fmt: skip
            item[key] = channels[0] if len(channels) == 1 else torch.cat(channels)
            item["intensity"] = {"offset": offsets[0], "scale": scales[0]}
        return item


def normalization(
    keys: KeysCollection = "image", *, scheme: _Scheme | Sequence[_Scheme] | None = None, **by_modality: Any
) -> NormalizeBySchemed | NormalizeByModalityd:
    """The transform that brings intensities to a common scale.

    Args:
        keys: of the image.
        scheme: of weights from elsewhere, as for `NormalizeBySchemed`; None for this project's own way.
        **by_modality: `ct_window`, `mr_percentiles` and `mr_floor`, as for `NormalizeByModalityd`; a scheme replaces
            them.
    """
    if scheme is None:
        return NormalizeByModalityd(keys, **by_modality)
    return NormalizeBySchemed(keys, scheme=scheme)


def _check(scheme: _Scheme) -> None:
    kind = scheme.get("kind")
    if kind not in _KINDS:
        raise UserError(f"intensity scheme {kind!r} is not known: choose one of {', '.join(_KINDS)}")
    if lacking := [name for name in _KINDS[kind][1] if name not in scheme]:
        raise UserError(f"intensity scheme {kind!r} lacks {', '.join(lacking)}: see bundle.data.NormalizeBySchemed")
    for name in ("window", "to"):
        if name in scheme and not (len(scheme[name]) == 2 and scheme[name][0] < scheme[name][1]):
            raise UserError(
                f"intensity scheme {kind!r} has {name} {scheme[name]}: give two values, the lower one first"
            )
    if kind == "z_score" and scheme.get("over", "volume") not in _OVER:
        raise UserError(f"intensity scheme z_score over {scheme['over']!r} is not known: choose {', '.join(_OVER)}")


def _range(image: torch.Tensor, scheme: _Scheme, name: str) -> _Normalized:  # noqa: ARG001 - one signature for all
    (low, high), (bottom, top) = scheme["window"], scheme["to"]
    scale = (high - low) / (top - bottom)
    return (image.clamp(low, high) - low) / scale + bottom, low - bottom * scale, scale


def _z_score(image: torch.Tensor, scheme: _Scheme, name: str) -> _Normalized:
    values = _OVER[scheme.get("over", "volume")](image.numpy())
    mean = float(values.mean(dtype=np.float64)) if values.size else 0.0
    deviation = float(values.std(dtype=np.float64)) if values.size else 0.0
    if deviation < 1e-6 * max(1.0, abs(mean)):
        raise VolumeError(name, "is constant", "leave it out")
    normalized = (image - mean) / deviation
    if scheme.get("over") == "inside":
        normalized = torch.where(torch.from_numpy(filled_nonzero(image.numpy())), normalized, image)
    return normalized, mean, deviation


def _rescale(image: torch.Tensor, scheme: _Scheme, name: str) -> _Normalized:  # noqa: ARG001
    low = float(image.min())
    width = max(float(image.max()) - low, 1e-8)
    return (image - low) / width, low, width


def _none(image: torch.Tensor, scheme: _Scheme, name: str) -> _Normalized:  # noqa: ARG001
    return image, 0.0, 1.0


def _statistics(image: torch.Tensor, scheme: _Scheme, name: str) -> _Normalized:  # noqa: ARG001
    low, high = scheme["window"]
    mean, deviation = float(scheme["mean"]), max(float(scheme["deviation"]), 1e-8)
    return (image.clamp(low, high) - mean) / deviation, mean, deviation


def _nonzero_box(image: np.ndarray) -> np.ndarray:
    found = np.nonzero(image)
    return image[tuple(slice(axis.min(), axis.max() + 1) for axis in found)] if found[0].size else image[:0]


def filled_nonzero(image: np.ndarray) -> np.ndarray:
    """Bool ``[D, H, W]``: where any channel of ``[C, D, H, W]`` is not 0, and the holes in there."""
    inside: np.ndarray = ndimage.binary_fill_holes((image != 0).any(0))
    return inside


_OVER: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "volume": lambda image: image,
    "nonzero": lambda image: image[image != 0],
    "nonzero_box": _nonzero_box,
    "inside": lambda image: image[filled_nonzero(image)[None]],
}
#: by its kind: what computes it, and the values that it needs
_KINDS: dict[str, tuple[Callable[[torch.Tensor, _Scheme, str], _Normalized], tuple[str, ...]]] = {
    "range": (_range, ("window", "to")),
    "z_score": (_z_score, ()),
    "statistics": (_statistics, ("window", "mean", "deviation")),
    "rescale": (_rescale, ()),
    "none": (_none, ()),
}
