# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""The drawing of label maps over images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from bundle.figures.colours import class_colours
from bundle.figures.names import name_end
from bundle.figures.planes import PLANES, mark_sides, side_by_side

__all__ = ["LabelledSlices", "cut_slices", "draw_segmentation"]

_PICTURES = ("image", "label", "prediction")
#: the window of a row is found on no more voxels than this
_VOXELS = 10_000_000


@dataclass(frozen=True)
class LabelledSlices:
    """What is drawn of a volume.

    Args:
        name: of the volume.
        pictures: for each plane the image, then the image under each label map, ``[rows, columns, 3]`` from 0 to 1.
        indices: of each plane's slice.
        aspects: of each plane, height by width of a voxel.
    """

    name: str
    pictures: Sequence[Sequence[np.ndarray]]
    indices: Sequence[int]
    aspects: Sequence[float]


def cut_slices(
    name: str,
    image: np.ndarray,
    label: np.ndarray,
    prediction: np.ndarray | None,
    spacing: Sequence[float],
    *,
    classes: int,
) -> LabelledSlices:
    """The slice of each plane with the most labelled voxels, coloured.

    Args:
        name: of the volume.
        image: [D, H, W] with axes R, A, S.
        label: likewise, classes counted from 1.
        prediction: likewise; None shows image and label alone.
        spacing: of the voxels, in mm.
        classes: how many there are.
    """
    colours = class_colours(classes)
    step = max(1, round((image.size / _VOXELS) ** (1 / 3)))
    low, high = np.percentile(image[::step, ::step, ::step], (0.5, 99.5))
    maps = [label] if prediction is None else [label, prediction]
    pictures, indices, aspects = [], [], []
    for plane in PLANES:
        counts = (label > 0).sum(axis=tuple(axis for axis in range(3) if axis != plane.normal))
        index = int(np.flatnonzero(counts == counts.max()).mean())
        grey = (plane.cut(image, index).clip(low, high) - low) / max(high - low, 1e-6)
        rgb = np.repeat(grey[..., None], 3, axis=-1)
        pictures.append([rgb, *(_coloured(rgb, plane.cut(one, index), colours) for one in maps)])
        indices.append(index)
        aspects.append(spacing[plane.up] / spacing[plane.across])
    return LabelledSlices(name, pictures, indices, aspects)


def _coloured(rgb: np.ndarray, labels: np.ndarray, colours: np.ndarray) -> np.ndarray:
    drawn, marked = rgb.copy(), labels > 0
    drawn[marked] = 0.5 * drawn[marked] + 0.5 * colours[(labels[marked] - 1) % len(colours)]
    return drawn


def draw_segmentation(volumes: Sequence[LabelledSlices], *, classes: Sequence[str], title: str) -> np.ndarray:
    """Draws image, label and, if there is one, prediction of each volume, with its name and the patient's sides.

    Args:
        volumes: one row each.
        classes: their names.
        title: of the whole.

    Returns:
        The pixels, uint8 [height, width, 3].
    """
    shown = len(volumes[0].pictures[0])
    columns = len(PLANES) * shown
    size = (1.75 * columns + 0.4, 1.9 * len(volumes) + 1.1)  # inches
    figure = Figure(figsize=size, dpi=80)
    canvas = FigureCanvasAgg(figure)
    figure.subplots_adjust(
        left=0.25 / size[0], right=0.99, bottom=0.4 / size[1], top=1 - 0.7 / size[1], wspace=0.02, hspace=0.04
    )
    figure.suptitle(title, parse_math=False)
    axes = figure.subplots(len(volumes), len(PLANES), squeeze=False)
    for row, volume in enumerate(volumes):
        for ax, plane, pictures, aspect, index in zip(
            axes[row], PLANES, volume.pictures, volume.aspects, volume.indices, strict=True
        ):
            drawn = side_by_side(pictures, aspect)
            ax.imshow(drawn.pixels, aspect=aspect, interpolation="nearest")
            ax.set(xticks=[], yticks=[])
            ax.spines[:].set_visible(False)
            if row == 0:
                drawn.write_names(ax, [f"{plane.name}\n{name}" for name in _PICTURES[:shown]])
            mark_sides(ax, plane, index, drawn)
        axes[row, 0].set_ylabel(name_end(volume.name, 28), fontsize=8, parse_math=False)
    named = classes[:12]
    colours = class_colours(len(classes))
    figure.legend(
        handles=[Patch(color=colours[i], label=label) for i, label in enumerate(named)],
        loc="lower center",
        ncols=max(1, len(named)),
        fontsize=8,
        frameon=False,
    )
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3]
