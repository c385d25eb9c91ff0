# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""The drawing of true and predicted boxes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle
from monai.transforms.utils import rescale_array

from bundle.figures.names import name_end
from bundle.figures.planes import PLANES, Plane, mark_sides, side_by_side

__all__ = ["DrawnVolume", "draw_detections"]


_TRUE, _PREDICTED = "#30e050", "#ff9020"


@dataclass(frozen=True)
class DrawnVolume:
    """One volume to draw; arrays have the axes R, A, S.

    Args:
        image: [D, H, W].
        spacing: of the voxels, in mm.
        true: [N, 6], boxes in voxels.
        predicted: [M, 6], the one with the highest score first.
        scores: [M].
        name: of the volume, which is written beside it.
    """

    image: np.ndarray
    spacing: tuple[float, ...]
    true: np.ndarray
    predicted: np.ndarray
    scores: np.ndarray
    name: str = ""

    @property
    def middle(self) -> tuple[int, ...]:
        """The voxel to show: in the middle of the largest true box, else of the best prediction, else of the volume."""
        if len(self.true):
            box = self.true[np.argmax(np.prod(self.true[:, 3:] - self.true[:, :3], axis=1))]
        elif len(self.predicted):
            box = self.predicted[0]
        else:
            box = np.array([0, 0, 0, *self.image.shape])
        return tuple(int(max(0, min(c, size - 1))) for c, size in zip((box[:3] + box[3:]) / 2, self.image.shape))

    def count_outside(self, boxes: np.ndarray) -> int:
        """How many boxes have their centre outside the image."""
        centre = (boxes[:, :3] + boxes[:, 3:]) / 2
        return int(((centre < 0) | (centre > np.array(self.image.shape))).any(axis=1).sum())


def draw_detections(volumes: Sequence[DrawnVolume], *, title: str) -> np.ndarray:
    """Draws three planes through each volume, with the boxes that they cut and the patient's sides.

    Args:
        volumes: one row each.
        title: of the whole.

    Returns:
        The pixels, uint8 [height, width, 3].
    """
    size = (3.2 * len(PLANES), 3.2 * len(volumes) + 0.9)  # inches
    figure = Figure(figsize=size, dpi=80)
    canvas = FigureCanvasAgg(figure)
    figure.subplots_adjust(left=0.03, right=0.99, bottom=0.4 / size[1], top=1 - 0.5 / size[1], wspace=0.04, hspace=0.04)
    figure.suptitle(title, parse_math=False)
    axes = figure.subplots(len(volumes), len(PLANES), squeeze=False)
    for row, volume in enumerate(volumes):
        grey = rescale_array(volume.image.clip(*np.percentile(volume.image, (0.5, 99.5))), 0, 1)
        for ax, plane in zip(axes[row], PLANES):
            index = volume.middle[plane.normal]
            aspect = volume.spacing[plane.up] / volume.spacing[plane.across]
            drawn = side_by_side([plane.cut(grey, index)[..., None].repeat(3, axis=-1)], aspect)
            ax.imshow(drawn.pixels, aspect=aspect, interpolation="nearest")
            mark_sides(ax, plane, index, drawn)
            for box, score in zip(volume.predicted, volume.scores):
                _draw_box(ax, plane, box, index, volume.image.shape, _PREDICTED, f"{score:.2f}")
            for box in volume.true:
                _draw_box(ax, plane, box, index, volume.image.shape, _TRUE, "")
            ax.set(xticks=[], yticks=[])
            ax.spines[:].set_visible(False)
            if row == 0:
                ax.set_title(plane.name, fontsize=9)
        axes[row, 0].set_ylabel(name_end(volume.name, 40), fontsize=8, parse_math=False)
    handles = [Patch(color=_TRUE, label="true"), Patch(color=_PREDICTED, label="predicted, with score")]
    figure.legend(handles=handles, loc="lower center", ncols=2, fontsize=8, frameon=False)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3]


def _draw_box(
    ax: Axes, plane: Plane, box: np.ndarray, index: int, shape: tuple[int, ...], colour: str, text: str
) -> None:
    if not box[plane.normal] <= index + 0.5 <= box[plane.normal + 3]:
        return
    # rows run from the top and columns from the left, against the array's axes; pixel 0 reaches from -0.5 to 0.5
    left, top = (shape[axis] - box[axis + 3] - 0.5 for axis in (plane.across, plane.up))
    width, height = (box[axis + 3] - box[axis] for axis in (plane.across, plane.up))
    ax.add_patch(Rectangle((left, top), width, height, fill=False, edgecolor=colour, linewidth=1.2))
    if text:
        ax.text(left, top, text, color=colour, fontsize=6, va="bottom", clip_on=True, parse_math=False)
