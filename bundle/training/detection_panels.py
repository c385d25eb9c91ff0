# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""Pictures of the boxes that a detector predicts, beside the true ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from ignite.engine import Engine, Events
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.image import imsave
from matplotlib.patches import Patch, Rectangle
from monai.transforms.utils import rescale_array
from monai.utils.enums import CommonKeys
from torch import Tensor

from bundle.atomic import replace_file
from bundle.training.panel_figure import PLANES, Plane
from bundle.training.rundir import RunFolder

__all__ = ["DetectionPanels", "DrawnVolume", "draw_detections"]

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
    """

    image: np.ndarray
    spacing: tuple[float, ...]
    true: np.ndarray
    predicted: np.ndarray
    scores: np.ndarray

    @property
    def middle(self) -> tuple[int, ...]:
        """The voxel to show: in the middle of the largest true box, else of the best prediction, else of the volume."""
        if len(self.true):
            box = self.true[np.argmax(np.prod(self.true[:, 3:] - self.true[:, :3], axis=1))]
        elif len(self.predicted):
            box = self.predicted[0]
        else:
            box = np.array([0, 0, 0, *self.image.shape])
        return tuple(int(min(c, size - 1)) for c, size in zip((box[:3] + box[3:]) / 2, self.image.shape))


class DetectionPanels:
    """Draws the first validation volumes after each validation: three slices each, with true and predicted boxes.

    Goes to `panels/epoch_0003.png` and to TensorBoard.

    Args:
        run_folder: where to.
        volumes: how many volumes to show, the first of the validation.
        boxes: predictions to draw per volume, those that score highest.
        writer: a TensorBoard `SummaryWriter`.
    """

    def __init__(self, *, run_folder: RunFolder, volumes: int = 3, boxes: int = 5, writer: Any = None) -> None:
        self.folder, self.volumes, self.boxes, self.writer = run_folder.panels, volumes, boxes, writer
        self._shown: list[DrawnVolume] = []

    def attach(self, engine: Engine) -> None:
        """Registers with the evaluator."""
        engine.add_event_handler(Events.EPOCH_STARTED, self._forget)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._collect)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._draw)

    def _forget(self, engine: Engine) -> None:  # noqa: ARG002 - the signature of a handler
        self._shown = []

    def _collect(self, engine: Engine) -> None:
        output, batch = engine.state.output, engine.state.batch
        each = zip(output[CommonKeys.IMAGE], output[CommonKeys.LABEL], output[CommonKeys.PRED], batch["spacing"])
        for image, target, prediction, spacing in each:
            if len(self._shown) == self.volumes:
                return
            order = prediction["label_scores"].argsort(descending=True)[: self.boxes]
            self._shown.append(
                DrawnVolume(
                    image=_array(image[0]),
                    spacing=tuple(spacing.tolist()),
                    true=_array(target["box"]),
                    predicted=_array(prediction["box"][order]),
                    scores=_array(prediction["label_scores"][order]),
                )
            )

    def _draw(self, engine: Engine) -> None:
        if not self._shown:
            return
        pixels = draw_detections(self._shown, title=f"epoch {engine.state.epoch}")
        with replace_file(self.folder / f"epoch_{engine.state.epoch:04d}.png") as temporary:
            imsave(temporary, pixels)
        if self.writer is not None:
            self.writer.add_image("detection", pixels, engine.state.epoch, dataformats="HWC")


def draw_detections(volumes: Sequence[DrawnVolume], *, title: str) -> np.ndarray:
    """Draws three planes through each volume, with the boxes that they cut.

    Args:
        volumes: one row each.
        title: of the whole.

    Returns:
        The pixels, uint8 [height, width, 3].
    """
    size = (3.2 * len(PLANES), 3.2 * len(volumes) + 0.9)  # inches
    figure = Figure(figsize=size, dpi=80)
    canvas = FigureCanvasAgg(figure)
    figure.subplots_adjust(left=0.01, right=0.99, bottom=0.4 / size[1], top=1 - 0.5 / size[1], wspace=0.04, hspace=0.04)
    figure.suptitle(title)
    axes = figure.subplots(len(volumes), len(PLANES), squeeze=False)
    for row, volume in enumerate(volumes):
        grey = rescale_array(volume.image.clip(*np.percentile(volume.image, (0.5, 99.5))), 0, 1)
        for ax, plane in zip(axes[row], PLANES):
            index = volume.middle[plane.normal]
            aspect = volume.spacing[plane.up] / volume.spacing[plane.across]
            ax.imshow(plane.slice_of(grey, index), cmap="gray", vmin=0, vmax=1, aspect=aspect, interpolation="nearest")
            for box, score in zip(volume.predicted, volume.scores):
                _draw_box(ax, plane, box, index, volume.image.shape, _PREDICTED, f"{score:.2f}")
            for box in volume.true:
                _draw_box(ax, plane, box, index, volume.image.shape, _TRUE, "")
            ax.set_axis_off()
            if row == 0:
                ax.set_title(plane.name, fontsize=9)
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
        ax.text(left, top, text, color=colour, fontsize=6, va="bottom", clip_on=True)


def _array(tensor: Tensor) -> np.ndarray:
    array: np.ndarray = tensor.detach().float().cpu().numpy()
    return array
