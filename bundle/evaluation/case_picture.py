# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""What is shown of a case: the outlines of reference and prediction over the image, and the case for a viewer."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import nibabel
import numpy as np

from bundle.data import read_volume
from bundle.data.grids import Grid, same_place, spacing_along_axes, turn_volume, volume_grid
from bundle.errors import UserError
from bundle.evaluation.label_map_case import LabelledCase
from bundle.evaluation.mask_metrics import union_box
from bundle.evaluation.written_labels import Classes, WrittenLabels, read_labels, values_of
from bundle.figures.contours import draw_contours
from bundle.reports import Case

__all__ = ["class_numbers", "cut_out", "draw_case", "moved", "viewer_box", "viewer_case"]

#: shown around what is labelled, in mm
_MARGIN = 25.0
#: voxels of a scan that a viewer gets whole
_MOST_VOXELS = 40_000_000


def draw_case(
    case: LabelledCase, classes: Classes, *, prediction_classes: Classes, resample: bool, title: str
) -> np.ndarray:
    """Draws a case, cut to what is labelled and a margin. The image is black if it is on another grid than the labels.

    Args:
        case: to draw; it has a prediction.
        classes: value in the reference by name, of a region its values.
        prediction_classes: likewise in the prediction.
        resample: as for `read_labels`.
        title: of the picture.

    Returns:
        The pixels, uint8 [height, width, 3].
    """
    reference = read_labels(case.reference, classes, case.name)
    assert case.prediction is not None
    predicted = read_labels(case.prediction, prediction_classes, case.name, like=reference.grid, resample=resample)
    affine = reference.grid[1]
    box = cut_out([*reference.boxes.values(), *predicted.boxes.values()], reference.grid)
    volumes = [
        _image(case, reference.grid, box),
        *(_numbers(labels, classes, box) for labels in (reference, predicted)),
    ]
    to_ras = nibabel.io_orientation(affine)
    image, truth, mask = (nibabel.orientations.apply_orientation(volume, to_ras) for volume in volumes)
    spacing = spacing_along_axes(affine)
    return draw_contours(image, truth, mask, spacing.tolist(), classes=list(classes), title=title)


def viewer_case(
    case: LabelledCase, classes: Classes, *, prediction_classes: Classes, resample: bool, note: str
) -> Case:
    """The case for a report's viewer, with classes numbered as `class_numbers` does.

    Of a very large scan it is cut to what is labelled and a margin.

    Args:
        case: as for `draw_case`.
        classes: as for `draw_case`.
        prediction_classes: as for `draw_case`.
        resample: as for `draw_case`.
        note: a line to show with it.
    """
    reference = read_labels(case.reference, classes, case.name)
    assert case.prediction is not None
    predicted = read_labels(case.prediction, prediction_classes, case.name, like=reference.grid, resample=resample)
    box = viewer_box([*reference.boxes.values(), *predicted.boxes.values()], reference.grid)
    label_maps = {
        name: _numbers(labels, classes, box) for name, labels in (("reference", reference), ("prediction", predicted))
    }
    scan = _image(case, reference.grid, box)
    return Case(case.name, scan, moved(reference.grid[1], box), label_maps, note=note)


def viewer_box(boxes: Sequence[tuple[slice, ...] | None], grid: Grid) -> tuple[slice, ...]:
    """The whole grid, or of a very large one what `cut_out` gives."""
    return cut_out(boxes if np.prod(grid[0]) > _MOST_VOXELS else [], grid)


def moved(affine: np.ndarray, box: tuple[slice, ...]) -> np.ndarray:
    """The affine of a box of a volume."""
    place = affine.copy()
    place[:3, 3] += affine[:3, :3] @ [part.start for part in box]
    return place


def class_numbers(classes: Iterable[str]) -> dict[str, int]:
    """1, 2, ... for the classes, in their order."""
    return {name: number for number, name in enumerate(classes, start=1)}


def cut_out(boxes: Sequence[tuple[slice, ...] | None], grid: Grid) -> tuple[slice, ...]:
    """The box around all boxes and a margin of 25 mm; of no box the whole grid."""
    shape, affine = grid
    if not any(boxes):
        return tuple(slice(0, size) for size in shape)
    box = union_box(*boxes)
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
    image = turn_volume(image, grid)
    shown: np.ndarray = image.numpy()[0][box].copy()
    return shown if same_place(volume_grid(image), grid) else nothing


def _numbers(labels: WrittenLabels, classes: Classes, box: tuple[slice, ...]) -> np.ndarray:
    """Classes counted from 1 in a box, int16; of two in one voxel the one of fewer values, then the later one."""
    numbers = np.zeros([part.stop - part.start for part in box], dtype=np.int16)
    widest_first = sorted(class_numbers(classes).items(), key=lambda pair: -len(values_of(classes[pair[0]])))
    for name, number in widest_first:
        if name in labels.masks:
            numbers[labels.cut(name, box)] = number
    return numbers
