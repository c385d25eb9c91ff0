# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""Pictures of what a segmentation network predicts, beside the label map."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from ignite.engine import Engine
from monai.utils.enums import CommonKeys

from bundle.figures.segmentation import draw_segmentation
from bundle.runs import RunFolder
from bundle.training.panels import EpochPanels

__all__ = ["SegmentationPanels"]


class SegmentationPanels(EpochPanels):
    """Draws the first validation volumes after each validation: image, label and prediction in three planes.

    The picture goes to `panels/epoch_0003.png`. Put the handler where prediction and label are one-hot, that is after
    the evaluator's postprocessing. Under several processes only the main one acts.

    Args:
        run_folder: where to.
        classes: their names, in the order of their channels without the background.
        volumes: how many volumes to show.
    """

    def __init__(self, *, run_folder: RunFolder, classes: Sequence[str], volumes: int = 2) -> None:
        super().__init__(run_folder)
        self.classes, self.volumes = tuple(classes), volumes
        self._shown: list[tuple[np.ndarray, np.ndarray, np.ndarray, tuple[float, ...]]] = []

    def _collect(self, engine: Engine) -> None:
        for item, batch in zip(engine.state.output, engine.state.batch, strict=True):
            if len(self._shown) < self.volumes:
                classes = [item[key].argmax(0).cpu().numpy() for key in (CommonKeys.LABEL, CommonKeys.PRED)]
                image = item[CommonKeys.IMAGE][0].float().cpu().numpy()
                spacing = tuple(torch.as_tensor(batch["spacing"]).flatten().tolist())
                self._shown.append((image, classes[0], classes[1], spacing))

    def _pixels(self, title: str) -> np.ndarray:
        return draw_segmentation(self._shown, classes=self.classes, title=title)
