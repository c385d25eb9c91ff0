# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""Pictures of what the network reconstructs: collects the crops to show, and files the picture of each epoch."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from ignite.engine import Engine, Events
from matplotlib.image import imsave
from monai.utils.enums import CommonKeys

from bundle.figures.reconstruction import PanelCrop, draw_panels
from bundle.runs import RunFolder
from bundle.runs.distributed import is_main_rank
from bundle.weights import axis_order, turn_array

__all__ = ["EpochPanels", "ReconstructionPanels"]


class EpochPanels(ABC):
    """Files a picture of what validation shows after each epoch, as `panels/epoch_0003.png`.

    A subclass collects what is to be seen and draws it. Under several processes only the main one acts.

    Args:
        run_folder: where to.
    """

    #: what is to be drawn
    _shown: dict[int, Any] | list[Any]

    def __init__(self, run_folder: RunFolder) -> None:
        self.run_folder = run_folder

    def attach(self, engine: Engine) -> None:
        """Registers with the evaluator."""
        if not is_main_rank():
            return
        engine.add_event_handler(Events.EPOCH_STARTED, self._forget)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._collect)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._draw)

    def _forget(self, engine: Engine) -> None:  # noqa: ARG002 - the signature of a handler
        self._shown.clear()

    @abstractmethod
    def _collect(self, engine: Engine) -> None:
        """Adds what an iteration shows to `_shown`."""

    @abstractmethod
    def _pixels(self, title: str) -> np.ndarray:
        """The picture, ``[height, width, 3]``, of what is shown."""

    def _draw(self, engine: Engine) -> None:
        if not self._shown:
            return
        pixels = self._pixels(f"epoch {engine.state.epoch}")
        with self.run_folder.new_panel(engine.state.epoch) as temporary:
            imsave(temporary, pixels)


class ReconstructionPanels(EpochPanels):
    """Draws some validation crops after each epoch: original, masked input, reconstruction and error.

    The crops are the first one of each of the first volumes that validation meets; as validation's crops and masks are
    fixed, so is the picture, but for what the network learns. It goes to `panels/epoch_0003.png`. Where crops have
    children, the first child of each level follows its crop. Under several processes only the main one acts.

    Args:
        run_folder: where to.
        restore: the loss's `restore(output, target)`, which gives the reconstruction [B, 1, D, H, W] in the image's
            intensity units; the output is the network's, the target is what the loss was given. Where there are
            children it is also called with the number of their level, `level`.
        crops: how many crops to show.
        names: the name of each volume by its number, free of anything that identifies a patient. Without it the volumes
            are shown by their numbers.
        axes: of the crops, one letter for each array axis.
    """

    def __init__(
        self,
        *,
        run_folder: RunFolder,
        restore: Callable[..., torch.Tensor],
        crops: int = 3,
        names: Sequence[str] | None = None,
        axes: str = "RAS",
    ) -> None:
        super().__init__(run_folder)
        self.restore, self.crops = restore, crops
        self.names, self.axes = names, axes
        self._shown: dict[int, list[PanelCrop]] = {}

    def _collect(self, engine: Engine) -> None:
        if len(self._shown) == self.crops:
            return
        label: dict[str, Any] = engine.state.output[CommonKeys.LABEL]
        pred: dict[str, Any] = engine.state.output[CommonKeys.PRED]
        new: dict[int, int] = {}  # the first row of each volume
        for row, volume in enumerate(label["volume"].tolist()):
            if volume not in self._shown and len(self._shown) + len(new) < self.crops:
                new.setdefault(volume, row)
        if not new:
            return
        crops = {**label, "visible": pred["visible"], "hidden": pred["hidden"]}
        with torch.no_grad():
            restored = self.restore(pred, label)
            below = [self.restore(pred, label, level=n) for n, _ in enumerate(label.get("children", ()), 1)]
        for volume, first in new.items():
            row = first
            name = f"volume {volume}" if self.names is None else self.names[volume]
            self._shown[volume] = [self._panel(name, crops, restored, row)]
            for number, (level, picture) in enumerate(zip(label.get("children", ()), below), 2):
                child = int((level.parent == row).nonzero()[0])
                self._shown[volume].append(self._panel(f"{name}, level {number}", vars(level), picture, child))
                row = child

    def _panel(self, name: str, tensors: Mapping[str, torch.Tensor], restored: torch.Tensor, row: int) -> PanelCrop:
        """One row of a batch of crops, or of children, to draw."""
        return PanelCrop(
            name=name,
            spacing=tuple(float(tensors["spacing"][row][axis]) for axis in axis_order(self.axes, "RAS")),
            reconstruction=self._array(restored[row]),
            **{key: self._array(tensors[key][row]) for key in ("image", "valid", "visible", "foreground", "hidden")},
        )

    def _pixels(self, title: str) -> np.ndarray:
        return draw_panels([row for rows in self._shown.values() for row in rows], title=title)

    def _array(self, tensor: torch.Tensor) -> np.ndarray:
        """The first channel as an array [D, H, W] with axes R, A, S."""
        array: np.ndarray = (tensor[0] if tensor.dtype == torch.bool else tensor[0].float()).cpu().numpy()
        return turn_array(array, self.axes)
