# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""Shapes of anchors from the training boxes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from bundle.data import PreparedVolume, SkippedVolume
from bundle.errors import UserError

__all__ = ["anchor_shapes"]

_SMALLEST = 2.0  # voxels: MONAI rounds half a side to whole voxels


def anchor_shapes(
    training: Sequence[PreparedVolume],
    validation: Sequence[PreparedVolume],
    *,
    skipped: Sequence[SkippedVolume] = (),
    count: int = 3,
    levels: int = 3,
) -> list[list[float]]:
    """Sizes in voxels of the anchors of a detector's finest level; those of each next level are twice as large.

    The sizes of all training boxes are divided by the power of 2 of the level that would find them: the finest level
    finds boxes up to twice as large as the smallest tenth, the next ones twice as large, and so on. What remains is
    sorted by volume and split into `count` parts of equal number, and the median size of each is a shape.

    Args:
        training: prepared volumes, whose files hold `box`, ``[N, 6]`` in voxels.
        validation: likewise; they must have a box, else there is nothing to measure.
        skipped: volumes that could not be used, for the message if no box is left.
        count: number of shapes.
        levels: of the feature pyramid.

    Returns:
        `count` sizes, voxels per axis.

    Raises:
        UserError: if training or validation has no box.
    """
    sizes = _sizes(training)
    for part, found in (("training", sizes), ("validation", _sizes(validation))):
        if not len(found):
            first = f" ({len(skipped)} were left out; {skipped[0].name} {skipped[0].problem})" if skipped else ""
            raise UserError(f"the {part} volumes have no box{first}: correct the data list, or try another --seed")
    side = np.prod(sizes, axis=1) ** (1 / 3)
    ratio = side / np.quantile(side, 0.1, method="lower")
    level = np.floor(np.log2(ratio) + 1e-6).clip(0, levels - 1)  # exactly twice as large is the next level's
    sizes = sizes / 2.0 ** level[:, None]
    order = np.argsort(np.prod(sizes, axis=1), kind="stable")
    parts = [part if len(part) else order for part in np.array_split(order, count)]  # fewer boxes than shapes
    shapes = [np.median(sizes[part], axis=0) for part in parts]
    return [[round(float(side), 1) for side in shape.clip(_SMALLEST)] for shape in shapes]


def _sizes(volumes: Sequence[PreparedVolume]) -> np.ndarray:
    boxes = [volume.load(keys=["box"])["box"].numpy() for volume in volumes]
    together = np.concatenate([np.zeros((0, 6)), *boxes])
    return together[:, 3:] - together[:, :3]
