# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""How far the epoch is: a bar on a terminal, a line now and then in a log file."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Sequence

from ignite.engine import Engine, Events
from ignite.handlers.tqdm_logger import ProgressBar

from bundle.runs.distributed import is_main_rank
from bundle.training.scalars import latest_scalars

__all__ = ["Progress"]

logger = logging.getLogger(__name__)


class Progress:
    """Shows an epoch's iterations with the time to go and the latest metrics.

    On a terminal this is Ignite's tqdm bar, which vanishes when the epoch ends (`History` then logs its line). Else,
    where a bar would fill the log with thousands of lines, it is a line every `every_seconds`: none in a short epoch.
    Under several processes only the main one shows it.

    Args:
        name: what runs, such as "train" or "validate".
        shown: the metrics to show, out of those of `Scalars`; put this handler after that one. None shows the loss and
            that of each objective of the trainer.
        every_seconds: time between two lines, in seconds.
    """

    def __init__(self, *, name: str, shown: Sequence[str] | None = (), every_seconds: float = 60) -> None:
        self.name, self.shown, self.every_seconds = name, shown, every_seconds
        self._metrics: dict[str, float] = {}
        self._epoch_start = self._last_line = 0.0
        self._done_at_start = 0

    def attach(self, engine: Engine) -> None:
        """Registers with a trainer or an evaluator."""
        if not is_main_rank():
            return
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._remember)
        if sys.stderr.isatty():
            bar = ProgressBar(desc=self.name, dynamic_ncols=True)
            bar.attach(engine, output_transform=lambda _: self._metrics)
        else:
            engine.add_event_handler(Events.EPOCH_STARTED, self._start)
            engine.add_event_handler(Events.ITERATION_COMPLETED, self._log)

    def _remember(self, engine: Engine) -> None:
        latest = latest_scalars(engine.state.output)
        if latest is not None:
            shown = self.shown
            if shown is None:
                shown = ("loss", *getattr(getattr(engine, "loss_function", None), "objectives", ()))
            self._metrics = {name: latest[name] for name in shown if name in latest}

    def _start(self, engine: Engine) -> None:
        self._epoch_start = self._last_line = time.monotonic()
        self._done_at_start = engine.state.iteration

    def _log(self, engine: Engine) -> None:
        now, state = time.monotonic(), engine.state
        if now - self._last_line < self.every_seconds:
            return
        self._last_line = now
        place = (state.iteration - 1) % state.epoch_length + 1  # a run may be resumed within an epoch
        done = state.iteration - self._done_at_start
        seconds_to_go = (now - self._epoch_start) / done * (state.epoch_length - place)
        text = "".join(f"{name} {value:.4g}, " for name, value in self._metrics.items())
        where, rest = f"epoch {state.epoch}, iteration {place}/{state.epoch_length}", " in this epoch"
        if state.max_epochs == 1:  # as where scans are predicted
            where, rest = f"{place}/{state.epoch_length}", ""
        logger.info("%s %s: %s%d s to go%s", self.name, where, text, seconds_to_go, rest)
