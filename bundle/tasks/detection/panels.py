# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""Pictures of the boxes that a detector predicts, beside the true ones."""

from __future__ import annotations

import numpy as np
from ignite.engine import Engine, Events
from matplotlib.image import imsave
from monai.utils.enums import CommonKeys
from torch import Tensor

from bundle.figures.detection import DrawnVolume, draw_detections
from bundle.runs import RunFolder
from bundle.runs.distributed import is_main_rank

__all__ = ["DetectionPanels"]


class DetectionPanels:
    """Draws the first validation volumes after each validation: three slices each, with true and predicted boxes.

    The picture goes to `panels/epoch_0003.png`. Under several processes only the main one acts.

    Args:
        run_folder: where to.
        volumes: how many volumes to show, the first of the validation.
        boxes: predictions to draw per volume, those that score highest.
    """

    def __init__(self, *, run_folder: RunFolder, volumes: int = 3, boxes: int = 5) -> None:
        self.run_folder, self.volumes, self.boxes = run_folder, volumes, boxes
        self._shown: list[DrawnVolume] = []

    def attach(self, engine: Engine) -> None:
        """Registers with the evaluator."""
        if not is_main_rank():
            return
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
        with self.run_folder.new_panel(engine.state.epoch) as temporary:
            imsave(temporary, pixels)


def _array(tensor: Tensor) -> np.ndarray:
    array: np.ndarray = tensor.detach().float().cpu().numpy()
    return array
