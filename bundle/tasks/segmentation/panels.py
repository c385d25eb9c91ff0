# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""Pictures of label maps: those that are trained on, and those that a network predicts."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import numpy as np
import torch
from ignite.engine import Engine, Events
from matplotlib.image import imsave
from monai.utils.enums import CommonKeys
from tqdm import tqdm

from bundle.atomic import replace_file
from bundle.data import PreparedVolume
from bundle.figures.segmentation import LabelledSlices, cut_slices, draw_segmentation
from bundle.runs import RunFolder
from bundle.runs.distributed import is_main_rank
from bundle.training.panels import EpochPanels
from bundle.weights import axis_order, turn_array

__all__ = ["SegmentationPanels", "TrainingLabels"]

logger = logging.getLogger(__name__)


class SegmentationPanels(EpochPanels):
    """Draws the first validation volumes after each validation: image, label and prediction in three planes.

    The picture goes to `panels/epoch_0003.png`. Put the handler where prediction and label are one-hot, that is after
    the evaluator's postprocessing. Under several processes only the main one acts.

    Args:
        run_folder: where to.
        classes: their names, in the order of their channels without the background.
        volumes: how many volumes to show.
        data: the validation volumes, for their names; without it they are shown by their numbers.
        axes: of the volumes, one letter for each array axis.
    """

    def __init__(
        self,
        *,
        run_folder: RunFolder,
        classes: Sequence[str],
        volumes: int = 2,
        data: Sequence[PreparedVolume] | None = None,
        axes: str = "RAS",
    ) -> None:
        super().__init__(run_folder)
        self.classes, self.volumes, self.data, self.axes = tuple(classes), volumes, data, axes
        self._shown: list[LabelledSlices] = []

    def _collect(self, engine: Engine) -> None:
        for item, batch in zip(engine.state.output, engine.state.batch, strict=True):
            if len(self._shown) < self.volumes:
                label, prediction = (item[key].argmax(0).cpu().numpy() for key in (CommonKeys.LABEL, CommonKeys.PRED))
                image = item[CommonKeys.IMAGE][0].float().cpu().numpy()
                spacing = torch.as_tensor(batch["spacing"]).flatten().tolist()
                number = int(batch.get("volume", len(self._shown)))
                name = f"volume {number}" if self.data is None else self.data[number].name
                given = _turned(self.axes, spacing, image, label, prediction)
                self._shown.append(cut_slices(name, *given, classes=len(self.classes)))

    def _pixels(self, title: str) -> np.ndarray:
        return draw_segmentation(self._shown, classes=self.classes, title=title)


class TrainingLabels:
    """Draws the training volumes with their labels once, before the first step, so that a wrong label map is seen.

    The picture goes to `panels/labels.png`. Under several processes only the main one acts. A resume draws nothing.

    Args:
        run_folder: where to.
        data: the training volumes.
        classes: their names, in the order of their values.
        most: of more volumes the first ones are drawn; 0 draws none.
        axes: of the volumes, one letter for each array axis.
    """

    def __init__(
        self,
        *,
        run_folder: RunFolder,
        data: Sequence[PreparedVolume],
        classes: Sequence[str],
        most: int = 20,
        axes: str = "RAS",
    ) -> None:
        self.run_folder, self.data, self.classes = run_folder, data, tuple(classes)
        self.most, self.axes = most, axes

    def attach(self, engine: Engine) -> None:
        """Registers with the trainer."""
        if is_main_rank() and self.most and not self.run_folder.resumed:
            engine.add_event_handler(Events.STARTED, self)

    def __call__(self, engine: Engine) -> None:  # noqa: ARG002 - the signature of a handler
        """Draws the picture."""
        rows = []
        for volume in tqdm(self.data[: self.most], desc="drawing the labels", delay=2):
            tensors = volume.load(keys=["image", "label", "spacing"])
            image = tensors["image"][0].numpy()
            label = tensors["label"][0].long().numpy()  # resampled ones are of float
            given = _turned(self.axes, tensors["spacing"].tolist(), image, label, None)
            rows.append(cut_slices(volume.name, *given, classes=len(self.classes)))
        some = f"the first {len(rows)} of " if len(rows) < len(self.data) else ""
        file = self.run_folder.labels
        pixels = draw_segmentation(rows, classes=self.classes, title=f"{some}{len(self.data)} training volumes")
        with replace_file(file) as temporary:
            imsave(temporary, pixels, format="png")
        logger.info("look at the labels that are trained on: %s", file)


def _turned(
    axes: str, spacing: Sequence[float], image: np.ndarray, label: np.ndarray, prediction: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None, tuple[float, ...]]:
    """A volume, its label, its prediction and its spacing, turned from some axes to RAS."""
    turned = [None if one is None else turn_array(one, axes) for one in (image, label, prediction)]
    assert turned[0] is not None
    assert turned[1] is not None
    return turned[0], turned[1], turned[2], tuple(spacing[axis] for axis in axis_order(axes, "RAS"))
