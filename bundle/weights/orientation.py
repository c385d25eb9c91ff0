# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""Turns a network's kernels, for weights that were trained on volumes with other axes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bundle.errors import UserError

__all__ = ["axis_order", "ordered_axes", "turn_array", "turn_kernels", "turn_settings"]

_OPPOSITE = dict(zip("RLAPSI", "LRPAIS", strict=True))


def turn_kernels(weights: Mapping[str, Tensor], axes: str, *, to: str = "RAS") -> dict[str, Tensor]:
    """Gives weights trained on volumes with some axes the kernels for volumes with others.

    The network then says of a volume in the new axes what it said of the same volume in the old ones, in the new axes.
    Where axes only change places that is exact, as it is to what `ordered_axes` gives. Where one is mirrored, a
    convolution of stride 2 meets an even number of voxels from the other end. Its features are then those of a volume
    moved by 2^k - 1 voxels, k the number of such convolutions so far. Average pooling does not move so. A
    ResidualEncoderUNet, which adds what it has pooled to what it has convolved, then gives other features.

    Args:
        weights: a state dict; all tensors with five dimensions, ``[out, in, D, H, W]``, are turned.
        axes: that the network was trained with, one letter for each array axis, such as "SPL": the first axis runs to
            superior, the second to posterior, the third to left.
        to: the axes that it will get.

    Raises:
        UserError: if `axes` are not three different ones.

    Example:
        >>> import torch
        >>> from bundle.weights import turn_kernels
        >>> kernel = torch.arange(3.0).view(1, 1, 1, 1, 3)  # 0 at the right, 2 at the left
        >>> turn_kernels({"conv.weight": kernel}, "SPL")["conv.weight"].shape
        torch.Size([1, 1, 3, 1, 1])
        >>> turn_kernels({"conv.weight": kernel}, "SPL")["conv.weight"].flatten()  # 2 at the left, 0 at the right
        tensor([2., 1., 0.])
    """
    order = axis_order(axes, to)
    if axes == to:
        return dict(weights)
    mirrored = [2 + i for i, target in enumerate(to) if axes[order[i]] != target]

    def turned(value: Tensor) -> Tensor:
        moved = value.permute(0, 1, *(2 + i for i in order))
        return torch.flip(moved, mirrored).contiguous() if mirrored else moved.contiguous()

    return {key: turned(value) if value.ndim == 5 else value for key, value in weights.items()}


def turn_settings(content: Mapping[str, Any], to: str = "RAS") -> dict[str, Any]:
    """What `model.json` says by axis, for volumes with other axes.

    Args:
        content: of a `model.json`; without `orientation` it is for RAS axes.
        to: the axes that it will be for.

    Raises:
        UserError: as `axis_order`.
    """
    axes = str(content.get("orientation", "RAS"))
    if axes == to:
        return dict(content)
    order, turned = axis_order(axes, to), {**content, "orientation": to}
    for name in _BY_AXIS & content.keys():
        if content[name]:  # spacing may be null, a volume's own
            turned[name] = [content[name][axis] for axis in order]
    if levels := content.get("levels"):
        turned["levels"] = [{**level, "stride": [level["stride"][axis] for axis in order]} for level in levels]
    encoder = dict(content.get("encoder", {}))
    for name in _BY_STAGE & encoder.keys():
        if isinstance(encoder[name], Sequence):
            encoder[name] = [one if isinstance(one, int) else [one[axis] for axis in order] for one in encoder[name]]
    if encoder.get("resolution"):  # SegResNetDS's, a number for each axis
        encoder["resolution"] = [encoder["resolution"][axis] for axis in order]
    if encoder:
        turned["encoder"] = encoder
    return turned


def turn_array(array: np.ndarray, axes: str, *, to: str = "RAS") -> np.ndarray:
    """Gives a volume other axes; a view.

    Args:
        array: ``[D, H, W]``.
        axes: of the array, one letter for each, as for `turn_kernels`.
        to: the axes that it will get.

    Raises:
        UserError: as `axis_order`.
    """
    order = axis_order(axes, to)
    return np.flip(array.transpose(order), [axis for axis, target in enumerate(to) if axes[order[axis]] != target])


def ordered_axes(axes: str) -> str:
    """The axes in the order x, y, z, each in its own direction: those to which kernels turn without a change.

    Args:
        axes: one letter for each array axis, as for `turn_kernels`.

    Raises:
        UserError: as `axis_order`.

    Example:
        >>> from bundle.weights import ordered_axes
        >>> ordered_axes("SPL"), ordered_axes("RAS")
        ('LPS', 'RAS')
    """
    return "".join(axes[index] for index in axis_order(axes, "RAS"))


def axis_order(axes: str, to: str) -> list[int]:
    """Which of the old axes each of the new ones is, whichever way it runs.

    Args:
        axes: the old ones, one letter for each array axis, as for `turn_kernels`.
        to: the new ones.

    Raises:
        UserError: if these are not three different axes.
    """
    for name in (axes, to):
        if len(name) != 3 or {frozenset((code, _OPPOSITE.get(code, ""))) for code in name} != _PAIRS:
            raise UserError(f"orientation {name!r} is not known: give one letter of R/L, A/P and S/I for each axis")
    return [next(i for i, code in enumerate(axes) if code in (target, _OPPOSITE[target])) for target in to]


#: what `model.json` has for each axis, and what encoders that know other axes than RAS have for each stage and axis
_BY_AXIS = {"spacing", "crop_size", "total_stride"}
_BY_STAGE = {"kernel_sizes", "strides", "kernel_size", "upsample_kernel_size"}
_PAIRS = {frozenset("RL"), frozenset("AP"), frozenset("SI")}
