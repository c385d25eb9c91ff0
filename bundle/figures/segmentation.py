# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""The drawing of label maps over images."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from monai.transforms.utils import rescale_array

from bundle.figures.colours import class_colours
from bundle.figures.planes import PLANES

__all__ = ["draw_segmentation"]


_PICTURES = ("image", "label", "prediction")


def draw_segmentation(
    volumes: Sequence[tuple[np.ndarray, np.ndarray, np.ndarray, tuple[float, ...]]],
    *,
    classes: Sequence[str],
    title: str,
) -> np.ndarray:
    """Draws image, label and prediction of each volume, in the slices with the most labelled voxels.

    Args:
        volumes: image, label and prediction [D, H, W] with axes R, A, S, classes counted from 1, and spacing in mm.
        classes: their names.
        title: of the whole.

    Returns:
        The pixels, uint8 [height, width, 3].
    """
    columns = len(PLANES) * len(_PICTURES)
    size = (1.75 * columns + 0.4, 1.9 * len(volumes) + 1.1)  # inches
    figure = Figure(figsize=size, dpi=80)
    canvas = FigureCanvasAgg(figure)
    figure.subplots_adjust(left=0.01, right=0.99, bottom=0.4 / size[1], top=1 - 0.7 / size[1], wspace=0.04, hspace=0.04)
    figure.suptitle(title, parse_math=False)
    colours = class_colours(len(classes))
    axes = figure.subplots(len(volumes), columns, squeeze=False)
    for row, (image, label, prediction, spacing) in enumerate(volumes):
        grey = rescale_array(image.clip(*np.percentile(image, (0.5, 99.5))), 0, 1)
        for number, plane in enumerate(PLANES):
            counts = (label > 0).sum(axis=tuple(axis for axis in range(3) if axis != plane.normal))
            index = int(np.flatnonzero(counts == counts.max()).mean())
            for place, (name, overlay) in enumerate(zip(_PICTURES, (None, label, prediction))):
                ax = axes[row, number * len(_PICTURES) + place]
                aspect = spacing[plane.up] / spacing[plane.across]
                picture = plane.cut(grey, index)
                rgb = np.repeat(picture[..., None], 3, axis=-1)
                if overlay is not None:
                    drawn = plane.cut(overlay, index)
                    marked = drawn > 0
                    rgb[marked] = 0.5 * rgb[marked] + 0.5 * colours[(drawn[marked] - 1) % len(colours)]
                ax.imshow(rgb, aspect=aspect, interpolation="nearest")
                ax.set_axis_off()
                if row == 0:
                    ax.set_title(f"{plane.name}\n{name}", fontsize=9)
    shown = classes[:12]
    figure.legend(
        handles=[Patch(color=colours[i], label=label) for i, label in enumerate(shown)],
        loc="lower center",
        ncols=max(1, len(shown)),
        fontsize=8,
        frameon=False,
    )
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3]
