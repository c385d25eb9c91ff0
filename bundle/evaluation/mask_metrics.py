# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""How well one mask fits another: overlap, distances between surfaces in mm, volume."""

from __future__ import annotations

import math

import numpy as np
import torch
from monai.data import MetaTensor
from monai.metrics import compute_dice, compute_hausdorff_distance, compute_surface_dice
from torch import Tensor

from bundle.data.straighten import is_sheared, straighten

__all__ = ["HIGHER_IS_BETTER", "mask_metrics", "union_box", "volume_metrics"]

#: the metrics of `mask_metrics` and `volume_metrics`; a signed error is best at 0
HIGHER_IS_BETTER: dict[str, bool | None] = {
    "dice": True,
    "hausdorff95_mm": False,
    "surface_dice": True,
    "volume_error_ml": None,
    "volume_error_percent": None,
    "absolute_volume_error_ml": False,
    "absolute_volume_error_percent": False,
}


def mask_metrics(
    predicted: np.ndarray, reference: np.ndarray, affine: np.ndarray, *, tolerance_mm: float
) -> dict[str, float]:
    """MONAI's Dice, 95 % Hausdorff distance and normalised surface Dice of two masks on one grid.

    The distance is the larger one of the two 95th percentiles, from each surface to the other. The surface Dice counts
    areas in mm2, as its definition does (Nikolov et al. 2021, arXiv:1809.04430), not voxels. If both masks are empty
    there is nothing to measure: all are NaN. If one is, Dice and surface Dice are 0 and the distance is infinite.

    Args:
        predicted: bool ``[D, H, W]``. Both masks may be cut to a box that holds both.
        reference: likewise.
        affine: from index to mm. Where its axes are not at right angles, distances are measured after the masks have
            been brought onto a grid with right angles.
        tolerance_mm: how far surfaces may lie apart.

    Returns:
        `dice`, `hausdorff95_mm` and `surface_dice`.

    Example:
        >>> import numpy as np
        >>> from bundle.evaluation import mask_metrics
        >>> predicted, reference = np.zeros((2, 16, 16, 16), dtype=bool)
        >>> predicted[4:12, 4:12, 4:12] = reference[5:13, 4:12, 4:12] = True
        >>> found = mask_metrics(predicted, reference, np.diag([2.0, 1.0, 1.0, 1.0]), tolerance_mm=1)
        >>> found["dice"], found["hausdorff95_mm"]
        (0.875, 2.0)
    """
    if not predicted.any() and not reference.any():
        return dict.fromkeys(("dice", "hausdorff95_mm", "surface_dice"), math.nan)
    if not predicted.any() or not reference.any():
        return {"dice": 0.0, "hausdorff95_mm": math.inf, "surface_dice": 0.0}
    one, other = (torch.from_numpy(np.ascontiguousarray(mask))[None, None] for mask in (predicted, reference))
    dice = float(compute_dice(one, other))
    if is_sheared(affine):
        one, other, affine = _straightened(one, other, affine)
    spacing = np.linalg.norm(affine[:3, :3], axis=0).tolist()
    distance = compute_hausdorff_distance(one, other, include_background=True, percentile=95, spacing=spacing)
    surface = compute_surface_dice(
        one, other, [float(tolerance_mm)], include_background=True, spacing=spacing, use_subvoxels=True
    )
    return {"dice": dice, "hausdorff95_mm": float(distance), "surface_dice": float(surface)}


def volume_metrics(predicted: int, reference: int, affine: np.ndarray) -> dict[str, float]:
    """Volumes in mL and their difference, also in percent of the reference: NaN where that has none.

    Args:
        predicted: voxels.
        reference: voxels.
        affine: from index to mm.
    """
    voxel = abs(float(np.linalg.det(affine[:3, :3]))) / 1000
    error = (predicted - reference) * voxel
    return {
        "volume_ml": predicted * voxel,
        "reference_ml": reference * voxel,
        "volume_error_ml": error,
        "volume_error_percent": 100 * (predicted - reference) / reference if reference else math.nan,
    }


def union_box(*boxes: tuple[slice, ...] | None) -> tuple[slice, ...]:
    """The smallest box around boxes; of size 0 without any."""
    known = [box for box in boxes if box is not None]
    if not known:
        return (slice(0, 0),) * 3
    return tuple(slice(min(part.start for part in axis), max(part.stop for part in axis)) for axis in zip(*known))


def _straightened(one: Tensor, other: Tensor, affine: np.ndarray) -> tuple[Tensor, Tensor, np.ndarray]:
    both = torch.nn.functional.pad(torch.cat([one[0], other[0]]).float(), (1, 1) * 3)  # so that each has a 0 around it
    moved = affine.copy()
    moved[:3, 3] -= affine[:3, :3].sum(1)
    turned = straighten(MetaTensor(both, affine=torch.from_numpy(moved)), nearest=True)
    masks = turned.as_tensor() > 0
    return masks[None, :1], masks[None, 1:], np.asarray(turned.affine)
