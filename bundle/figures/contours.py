# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""The drawing of the outlines of two label maps over an image."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from monai.transforms.utils import rescale_array

from bundle.figures.colours import class_colours
from bundle.figures.planes import PLANES, Plane, mark_sides, side_by_side

__all__ = ["draw_contours"]

#: classes that the legend names
_NAMED = 12


def draw_contours(
    image: np.ndarray,
    reference: np.ndarray | None,
    prediction: np.ndarray,
    spacing: Sequence[float],
    *,
    classes: Sequence[str],
    title: str,
) -> np.ndarray:
    """Draws three planes, each where the two label maps differ most, with the outlines of both.

    Without a reference, planes are those with most of the prediction.

    Args:
        image: ``[D, H, W]`` with axes R, A, S.
        reference: classes counted from 1, likewise; None if there is none.
        prediction: likewise.
        spacing: of the voxels, in mm.
        classes: their names.
        title: of the whole.

    Returns:
        The pixels, uint8 [height, width, 3].
    """
    figure = Figure(figsize=(12.6, 5.0), dpi=80)
    canvas = FigureCanvasAgg(figure)
    figure.subplots_adjust(left=0.01, right=0.99, bottom=0.1, top=0.86, wspace=0.04)
    figure.suptitle(title, parse_math=False)
    colours = class_colours(len(classes))
    differs = prediction > 0 if reference is None else reference != prediction
    shown = differs if reference is None or differs.any() else reference > 0
    outlines = [(prediction, "solid")] if reference is None else [(reference, "solid"), (prediction, "dashed")]
    drawn: set[int] = set()
    for ax, plane in zip(figure.subplots(1, len(PLANES)), PLANES):
        counts = shown.sum(axis=tuple(axis for axis in range(3) if axis != plane.normal))
        index = int(np.flatnonzero(counts == counts.max()).mean())
        grey = plane.cut(image, index).astype(np.float32)
        grey = rescale_array(grey.clip(*np.percentile(grey, (0.5, 99.5))), 0, 1)
        aspect = spacing[plane.up] / spacing[plane.across]
        row = side_by_side([grey[..., None].repeat(3, axis=-1)], aspect)
        ax.imshow(row.pixels, aspect=aspect, interpolation="nearest")
        mark_sides(ax, plane, index, row)
        for labels, style in outlines:
            drawn |= _outline(ax, plane, labels, index, colours, style)
        ax.set_axis_off()
        ax.set_title(plane.name, fontsize=9)
    styles = {"reference": "solid", "prediction": "dashed"} if reference is not None else {}
    lines = [Line2D([], [], color="0.3", ls=style, label=name) for name, style in styles.items()]
    lines += [Line2D([], [], color=colours[number - 1], label=classes[number - 1]) for number in sorted(drawn)[:_NAMED]]
    figure.legend(handles=lines, loc="lower center", ncols=min(len(lines), 8), fontsize=8, frameon=False)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3]


def _outline(ax: Axes, plane: Plane, labels: np.ndarray, index: int, colours: np.ndarray, style: str) -> set[int]:
    """Draws the outline of each class in a slice; returns the classes that are there."""
    cut = np.pad(plane.cut(labels, index), 1)  # so that an outline closes at the border
    numbers = [int(number) for number in np.unique(cut) if number > 0]
    across, up = (np.arange(size) - 1 for size in (cut.shape[1], cut.shape[0]))
    for number in numbers:
        colour = colours[number - 1]
        ax.contour(across, up, cut == number, levels=[0.5], colors=[colour], linestyles=style, linewidths=1.3)
    return set(numbers)
