# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""Which image of a series lies where on a grid: what a result that refers to the series must know."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from bundle.data.dicom.acquisitions import main_acquisition
from bundle.data.dicom.frames import Frame, read_all_frames
from bundle.data.dicom.placement import choose_slices, in_order

__all__ = ["frames_on_grid"]

#: directions that differ by less differ by rounding, as the reader takes it
_SAME_DIRECTION = 5e-4
#: sizes of a pixel that differ by less, as a share, differ by rounding
_SAME_PIXEL = 1e-4
#: how far a slice may lie from its place: in mm, as a share of a pixel, and as a share of a step; the reader's limits
_MISPLACED_MM, _MISPLACED_PIXEL, _MISPLACED_STEP = 0.05, 0.1, 0.02


def frames_on_grid(
    files: Sequence[str], affine: np.ndarray, shape: Sequence[int], name: str
) -> tuple[list[Frame], bool]:
    """The images of a series by the slices of a grid, and whether each slice is one of them.

    Of several images at one place the first one that is a slice of a volume counts, as the reader takes it.

    Args:
        files: of the series, in any order.
        affine: ``[4, 4]``, from index (column, row, slice) to RAS mm, as `read_series` gives it.
        shape: of the grid: columns, rows, slices.
        name: what to call the series in an error.

    Returns:
        For each slice its image, and True. If a slice has none, as where the reader has resampled: the slices of the
        series in their order, and False.

    Raises:
        ValueError: if a file is no DICOM image.
        VolumeError: if the files are not one volume.
    """
    frames = list(read_all_frames(list(files)))
    lps = np.diag([-1.0, -1.0, 1.0, 1.0]) @ np.asarray(affine, dtype=np.float64)
    step = float(np.linalg.norm(lps[:3, 2]))
    found: dict[int, Frame] = {}
    on_grid = _of_main_acquisition([frame for frame in frames if _is_parallel(frame, lps, shape)])
    for frame in sorted(on_grid, key=lambda frame: bool(frame.odd)):
        if frame.place is not None:
            index = round(float((frame.place[0] - lps[:3, 3]) @ lps[:3, 2]) / step**2)
            near = max(_MISPLACED_MM, _MISPLACED_PIXEL * min(frame.pixel or (1.0,)), _MISPLACED_STEP * step)
            if 0 <= index < shape[2] and np.linalg.norm(frame.place[0] - lps[:3] @ [0, 0, index, 1]) <= near:
                found.setdefault(index, frame)
    if len(found) == shape[2]:
        return [found[index] for index in range(shape[2])], True
    return in_order(choose_slices(frames, name)[0])[0], False


def _of_main_acquisition(frames: list[Frame]) -> list[Frame]:
    """Parallel images without the few slices of another acquisition that the reader leaves out."""
    slices = [frame for frame in frames if not frame.odd]
    kept = main_acquisition(*in_order(slices))[0] if len(slices) > 2 else slices
    return [*kept, *(frame for frame in frames if frame.odd)]


def _is_parallel(frame: Frame, lps: np.ndarray, shape: Sequence[int]) -> bool:
    """Whether an image has the size, the pixels and the directions of a grid's slices."""
    if frame.place is None or frame.pixel is None or frame.size != (shape[1], shape[0]):
        return False
    pixel = np.linalg.norm(lps[:3, :2], axis=0)
    is_turned = np.abs(frame.place[1:] - (lps[:3, :2] / pixel).T).max() > _SAME_DIRECTION
    return not is_turned and bool(np.abs(np.array(frame.pixel[::-1]) / pixel - 1).max() <= _SAME_PIXEL)
