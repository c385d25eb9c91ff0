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
from bundle.figures.planes import PLANES, Row, mark_sides, side_by_side

__all__ = ["LabelledSlices", "cut_slices", "draw_segmentation"]

_PICTURES = ("image", "label", "prediction")
#: pictures beside each other, of one volume or several
_BESIDE = 6
#: classes in the legend, inches of a class and of a line of them
_NAMED, _NAME, _LINE = 12, 1.6, 0.2
#: inches of a picture, and the most of its height
_WIDTH, _TALLEST = 2.1, 2.6
#: inches beside a volume's rows, above them for names, between them, and for the title of all
_SIDE, _NAMES, _GAP, _TITLE = 0.3, 0.42, 0.08, 0.35
#: inches of the whole picture, so that its title has room
_LEAST = 6.0
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
    """Draws image, label and, if there is one, prediction of volumes beside each other, with the patient's sides.

    Args:
        volumes: each has a row for each plane, below its name.
        classes: their names.
        title: of the whole.

    Returns:
        The pixels, uint8 [height, width, 3].
    """
    shown = len(volumes[0].pictures[0])
    beside = min(len(volumes), _BESIDE // shown)
    rows = [[side_by_side(*row) for row in zip(one.pictures, one.aspects, strict=True)] for one in volumes]
    heights = np.max([_heights(one, volume.aspects, shown) for one, volume in zip(rows, volumes, strict=True)], axis=0)
    block = _SIDE + _WIDTH * shown, float(heights.sum()) + _NAMES + _GAP * len(PLANES)
    wide, named = max(block[0] * beside + _GAP, _LEAST), classes[:_NAMED]
    in_a_line = max(1, min(len(named), int(wide / _NAME)))
    below = block[1] * -(-len(volumes) // beside) + _LINE * (-(-len(named) // in_a_line) + 0.5)
    figure = Figure(figsize=(wide, below + _TITLE), dpi=80)
    canvas = FigureCanvasAgg(figure)
    figure.suptitle(title, fontsize=11, y=1 - 0.08 / figure.get_figheight(), parse_math=False)
    for number, (volume, of_planes) in enumerate(zip(volumes, rows, strict=True)):
        line, column = divmod(number, beside)
        _draw_volume(figure, volume, of_planes, (column * block[0] + _SIDE, below - line * block[1]), heights)
    colours = class_colours(len(classes))
    figure.legend(
        handles=[Patch(color=colours[i], label=label) for i, label in enumerate(named)],
        loc="lower center",
        ncols=in_a_line,
        fontsize=8,
        frameon=False,
        borderaxespad=0.1,
    )
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3]


def _heights(rows: Sequence[Row], aspects: Sequence[float], shown: int) -> list[float]:
    """Inches of each plane's row."""
    sizes = [row.pixels.shape[:2] for row in rows]
    return [
        min(_WIDTH * shown * aspect * high / wide, _TALLEST)
        for (high, wide), aspect in zip(sizes, aspects, strict=True)
    ]


def _draw_volume(
    figure: Figure, volume: LabelledSlices, rows: Sequence[Row], corner: tuple[float, float], heights: Sequence[float]
) -> None:
    """Draws a row for each plane, below names. Lengths are inches; the corner is the upper left one."""
    wide, high = figure.get_size_inches()
    shown = len(volume.pictures[0])
    (left, top), width = corner, _WIDTH * shown
    figure.text((left + width / 2) / wide, top / high, name_end(volume.name, 20 * shown), fontsize=9, ha="center",
                va="top", parse_math=False)  # fmt: skip
    top -= _NAMES
    for number, (plane, row, height) in enumerate(zip(PLANES, rows, heights, strict=True)):
        ax = figure.add_axes((left / wide, (top - height) / high, width / wide, height / high))
        ax.imshow(row.pixels, aspect=volume.aspects[number], interpolation="nearest")
        ax.set(xticks=[], yticks=[])
        ax.spines[:].set_visible(False)
        ax.set_ylabel(plane.name, fontsize=8)
        if number == 0:
            row.write_names(ax, _PICTURES[:shown])
        mark_sides(ax, plane, volume.indices[number], row)
        top -= height + _GAP
