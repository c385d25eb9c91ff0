# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""Brings a volume with oblique slices, as of a head CT with a tilted gantry, onto a grid with right angles."""

from __future__ import annotations

import numpy as np
import torch
from monai.data import MetaTensor
from scipy import ndimage

__all__ = ["is_sheared", "straighten"]

#: cosine of the angle between two axes that is still a right one: 0.06 degrees, 0.3 mm over 300 mm
_RIGHT_ANGLE = 1e-3


def is_sheared(affine: np.ndarray | torch.Tensor) -> bool:
    """Whether the axes of a grid are not at right angles."""
    axes = np.asarray(affine, dtype=np.float64)[:3, :3]
    axes = axes / np.linalg.norm(axes, axis=0)
    return bool(np.abs(axes.T @ axes - np.eye(3)).max() > _RIGHT_ANGLE)


def straighten(image: MetaTensor, *, nearest: bool = False) -> MetaTensor:
    """A volume on a grid with right angles; the same one, if its axes have them.

    The first two axes keep their directions, so that values are interpolated within a slice only. The new grid holds
    the whole volume. Around it each channel has its lowest value.

    Args:
        image: ``[channels, D, H, W]``.
        nearest: whether to take the nearest value, as for a label map; else linear interpolation.

    Example:
        >>> import torch
        >>> from monai.data import MetaTensor
        >>> affine = torch.eye(4)
        >>> affine[1, 2] = 0.5  # each slice lies half a voxel further along the second axis
        >>> straighten(MetaTensor(torch.rand(1, 4, 4, 5), affine=affine)).shape
        torch.Size([1, 4, 6, 5])
    """
    source = np.asarray(image.affine, dtype=np.float64)
    if not is_sheared(source):
        return image
    axes = _right_angled(source[:3, :3])
    shape = np.array(image.shape[1:])
    corners = np.array(list(np.ndindex(2, 2, 2))) * (shape - 1)
    placed = corners @ (np.linalg.inv(axes) @ source[:3, :3]).T
    low, high = np.floor(placed.min(0) + 1e-6), np.ceil(placed.max(0) - 1e-6)
    target = np.eye(4)
    target[:3, :3], target[:3, 3] = axes, source[:3, 3] + axes @ low
    back = np.linalg.inv(source) @ target
    size = tuple(int(n) for n in high - low + 1)
    # "grid-constant" and not "constant": that one loses the first slice to a rounding error of an index
    channels = [
        ndimage.affine_transform(
            channel,
            back[:3, :3],
            back[:3, 3],
            size,
            order=0 if nearest else 1,
            mode="grid-constant",
            cval=channel.min(),
        )
        for channel in image.numpy()
    ]
    return MetaTensor(torch.from_numpy(np.stack(channels)), affine=torch.from_numpy(target))


def _right_angled(axes: np.ndarray) -> np.ndarray:
    """The axes, each without its parts along those before it (Gram-Schmidt)."""
    made = axes.copy()
    for number in range(3):
        for before in range(number):
            along = made[:, before]
            made[:, number] -= (made[:, number] @ along) / (along @ along) * along
    return made
