# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""The picture of a case that was evaluated: the outlines of reference and prediction over the image."""

from __future__ import annotations

from collections.abc import Mapping

import nibabel
import numpy as np

from bundle.data import read_volume
from bundle.data.grids import Grid, same_place
from bundle.errors import UserError
from bundle.evaluation.label_map_case import LabelledCase
from bundle.evaluation.mask_metrics import union_box
from bundle.evaluation.written_labels import WrittenLabels, read_labels
from bundle.figures.contours import draw_contours

__all__ = ["draw_case"]

#: shown around what is labelled, in mm
_MARGIN = 25.0


def draw_case(
    case: LabelledCase, classes: Mapping[str, int], *, prediction_classes: Mapping[str, int], resample: bool, title: str
) -> np.ndarray:
    """Draws a case, cut to what is labelled and a margin. The image is black if it is on another grid than the labels.

    Args:
        case: to draw; it has a prediction.
        classes: value in the reference by name.
        prediction_classes: value in the prediction by name.
        resample: as for `read_labels`.
        title: of the picture.

    Returns:
        The pixels, uint8 [height, width, 3].
    """
    reference = read_labels(case.reference, classes, case.name)
    assert case.prediction is not None
    predicted = read_labels(case.prediction, prediction_classes, case.name, like=reference.grid, resample=resample)
    boxes = [*reference.boxes.values(), *predicted.boxes.values()]
    shape, affine = reference.grid
    box = _widened(union_box(*boxes), shape, affine) if any(boxes) else tuple(slice(0, size) for size in shape)
    volumes = [
        _image(case, reference.grid, box),
        *(_numbers(labels, classes, box) for labels in (reference, predicted)),
    ]
    to_ras = nibabel.io_orientation(affine)
    image, truth, mask = (nibabel.orientations.apply_orientation(volume, to_ras) for volume in volumes)
    spacing = np.linalg.norm(affine[:3, :3], axis=0)[np.argsort(to_ras[:, 0])]
    return draw_contours(image, truth, mask, spacing.tolist(), classes=list(classes), title=title)


def _widened(box: tuple[slice, ...], shape: tuple[int, ...], affine: np.ndarray) -> tuple[slice, ...]:
    margins = np.ceil(_MARGIN / np.linalg.norm(affine[:3, :3], axis=0)).astype(int)
    return tuple(
        slice(max(0, part.start - margin), min(size, part.stop + margin))
        for part, margin, size in zip(box, margins, shape)
    )


def _image(case: LabelledCase, grid: Grid, box: tuple[slice, ...]) -> np.ndarray:
    """The first channel in a box; zeros where it cannot be shown."""
    nothing = np.zeros([part.stop - part.start for part in box], dtype=np.float32)
    try:
        image = read_volume(list(case.image), case.name, constant=True, stacked=True)
    except UserError:
        return nothing
    placed = tuple(image.shape[1:]), np.asarray(image.affine, dtype=np.float64)
    shown: np.ndarray = image.numpy()[0][box].copy()
    return shown if same_place(placed, grid) else nothing


def _numbers(labels: WrittenLabels, classes: Mapping[str, int], box: tuple[slice, ...]) -> np.ndarray:
    """Classes counted from 1 in a box, int16; of two in one voxel the later one."""
    numbers = np.zeros([part.stop - part.start for part in box], dtype=np.int16)
    for number, name in enumerate(classes, start=1):
        if name in labels.masks:
            numbers[labels.cut(name, box)] = number
    return numbers
