# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""Metrics and pictures for TensorBoard."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property

import numpy as np
from ignite.engine import Engine, Events
from matplotlib.image import imread
from torch.utils.tensorboard import SummaryWriter

from bundle.runs import RunFolder
from bundle.runs.distributed import is_main_rank
from bundle.runs.folder import keeps_picture
from bundle.training.scalars import latest_scalars

__all__ = ["TensorBoard"]


class TensorBoard:
    """Writes the trainer's and the validator's metrics, and the picture of each validation, for TensorBoard.

    - Every `interval` iterations: the metrics of the iteration, by the number of the iteration, as `Scalars` gives
      them.
    - After every epoch: the metrics of the trainer, and of the validator if it ran, by the number of the epoch.
    - After every validation: the picture that it drew into the folder `panels`; of a long run those that stay there.

    Put it after `Scalars` and after validation. Under several processes only the main one acts.

    Args:
        run_folder: where to; the events go into its folder `tensorboard`.
        validator: the engine that validates.
        picture: the name of the picture in TensorBoard, such as "reconstruction".
        interval: number of iterations between two whose metrics are written.
    """

    def __init__(
        self, *, run_folder: RunFolder, validator: Engine | None = None, picture: str = "panels", interval: int = 10
    ) -> None:
        self.run_folder, self.validator, self.picture, self.interval = run_folder, validator, picture, interval

    def attach(self, engine: Engine) -> None:
        """Registers with the trainer."""
        if is_main_rank():
            engine.add_event_handler(Events.ITERATION_COMPLETED(every=self.interval), self._write_iteration)
            engine.add_event_handler(Events.EPOCH_COMPLETED, self._write_epoch)

    @cached_property
    def _writer(self) -> SummaryWriter:
        """Makes its file when there is something to write: a resume that is refused leaves the folder as it was."""
        return SummaryWriter(str(self.run_folder.tensorboard))

    def _write_iteration(self, engine: Engine) -> None:
        self._add(latest_scalars(engine.state.output) or {}, engine.state.iteration)

    def _write_epoch(self, engine: Engine) -> None:
        epoch = engine.state.epoch
        self._add(engine.state.metrics, epoch)
        if self.validator is None or self.validator.state.epoch != epoch:
            return
        self._add(self.validator.state.metrics, epoch)
        file = self.run_folder.panel(epoch)
        if file.exists() and keeps_picture(epoch):
            pixels = (255 * imread(file)[..., :3]).round().astype(np.uint8)  # without alpha
            self._writer.add_image(self.picture, pixels, epoch, dataformats="HWC")
            self._writer.flush()

    def _add(self, metrics: Mapping[str, float], step: int) -> None:
        for name, value in metrics.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()
