# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""Pictures of the boxes that a detector predicts, beside the true ones."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from ignite.engine import Engine
from monai.utils.enums import CommonKeys
from torch import Tensor

from bundle.data import PreparedVolume
from bundle.figures.detection import DrawnVolume, draw_detections
from bundle.runs import RunFolder
from bundle.training.panels import EpochPanels
from bundle.weights import axis_order, turn_array

__all__ = ["DetectionPanels"]


class DetectionPanels(EpochPanels):
    """Draws the first validation volumes after each validation: three slices each, with true and predicted boxes.

    The picture goes to `panels/epoch_0003.png`. Under several processes only the main one acts.

    Args:
        run_folder: where to.
        volumes: how many volumes to show, the first of the validation.
        boxes: predictions to draw per volume, those that score highest.
        data: the validation volumes, for their names; without it they are shown by their numbers.
        axes: of the volumes, one letter for each array axis.
    """

    def __init__(
        self,
        *,
        run_folder: RunFolder,
        volumes: int = 3,
        boxes: int = 5,
        data: Sequence[PreparedVolume] | None = None,
        axes: str = "RAS",
    ) -> None:
        super().__init__(run_folder)
        self.volumes, self.boxes, self.data, self.axes = volumes, boxes, data, axes
        self._shown: list[DrawnVolume] = []

    def _collect(self, engine: Engine) -> None:
        output, batch = engine.state.output, engine.state.batch
        keys = (CommonKeys.IMAGE, CommonKeys.LABEL, CommonKeys.PRED)
        each = zip(*(output[key] for key in keys), batch["spacing"], batch["volume"].tolist(), strict=True)
        for image, target, prediction, spacing, number in each:
            if len(self._shown) == self.volumes:
                return
            order = prediction["label_scores"].argsort(descending=True)[: self.boxes]
            shape = image.shape[1:]
            self._shown.append(
                DrawnVolume(
                    image=turn_array(_array(image[0]), self.axes),
                    spacing=tuple(spacing.tolist()[axis] for axis in axis_order(self.axes, "RAS")),
                    true=_turned(_array(target["box"]), shape, self.axes),
                    predicted=_turned(_array(prediction["box"][order]), shape, self.axes),
                    scores=_array(prediction["label_scores"][order]),
                    name=f"volume {number}" if self.data is None else self.data[number].name,
                )
            )

    def _pixels(self, title: str) -> np.ndarray:
        return draw_detections(self._shown, title=title)


def _turned(boxes: np.ndarray, shape: Sequence[int], axes: str) -> np.ndarray:
    """Boxes in voxels ``[N, 6]`` of a volume with some axes, in those of the volume turned to RAS."""
    order = axis_order(axes, "RAS")
    low, high = boxes[:, :3][:, order], boxes[:, 3:][:, order]
    size = np.asarray(shape)[order]
    mirrored = np.array([axes[axis] != target for axis, target in zip(order, "RAS", strict=True)])
    return np.concatenate([np.where(mirrored, size - high, low), np.where(mirrored, size - low, high)], axis=1)


def _array(tensor: Tensor) -> np.ndarray:
    array: np.ndarray = tensor.detach().float().cpu().numpy()
    return array
