# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""Sliding windows over a volume whose features are much coarser than its voxels."""

from __future__ import annotations

from collections.abc import Sequence

from bundle.errors import UserError

__all__ = ["whole_cell_overlap"]


def whole_cell_overlap(overlap: float, window: Sequence[int], cell: Sequence[int]) -> tuple[float, ...]:
    """The overlap per axis for which every window begins at a cell's border.

    `monai.inferers.SlidingWindowInferer` rounds a window's place on the feature map down: windows that begin between
    two cells would be laid over their neighbours' features shifted by up to a cell.

    Args:
        overlap: share of a window that the next one sees again, at least.
        window: voxels per axis.
        cell: voxels per axis of a cell; divides `window`.

    Raises:
        UserError: for an overlap outside 0 to below 1.
    """
    if not 0 <= overlap < 1:
        raise UserError(f"--overlap {overlap} does not fit: give a share from 0 to below 1, such as 0.5")
    steps = [max(c, int(w * (1 - overlap) + 1e-6) // c * c) for w, c in zip(window, cell)]
    # MONAI takes int(window * (1 - overlap)): half a voxel keeps its rounding error from costing one
    return tuple(max(0.0, 1 - (step + 0.5) / w) for step, w in zip(steps, window))
