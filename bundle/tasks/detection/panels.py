# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""Pictures of the boxes that a detector predicts, beside the true ones."""

from __future__ import annotations

import numpy as np
from ignite.engine import Engine
from monai.utils.enums import CommonKeys
from torch import Tensor

from bundle.figures.detection import DrawnVolume, draw_detections
from bundle.runs import RunFolder
from bundle.training.panels import EpochPanels

__all__ = ["DetectionPanels"]


class DetectionPanels(EpochPanels):
    """Draws the first validation volumes after each validation: three slices each, with true and predicted boxes.

    The picture goes to `panels/epoch_0003.png`. Under several processes only the main one acts.

    Args:
        run_folder: where to.
        volumes: how many volumes to show, the first of the validation.
        boxes: predictions to draw per volume, those that score highest.
    """

    def __init__(self, *, run_folder: RunFolder, volumes: int = 3, boxes: int = 5) -> None:
        super().__init__(run_folder)
        self.volumes, self.boxes = volumes, boxes
        self._shown: list[DrawnVolume] = []

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

    def _pixels(self, title: str) -> np.ndarray:
        return draw_detections(self._shown, title=title)


def _array(tensor: Tensor) -> np.ndarray:
    array: np.ndarray = tensor.detach().float().cpu().numpy()
    return array
