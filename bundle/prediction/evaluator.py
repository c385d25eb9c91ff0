# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""MONAI's evaluator, for scans of which some are done and some are broken."""

from __future__ import annotations

import logging
from typing import Any

from ignite.engine import Engine, Events
from torch.cuda import OutOfMemoryError

from bundle.errors import user_error_in
from bundle.inference import VolumeEvaluator

__all__ = ["ScanEvaluator"]

logger = logging.getLogger(__name__)


class ScanEvaluator(VolumeEvaluator):
    """A `VolumeEvaluator` that goes on where a scan fails in the network or after it, and where none is left to do."""

    def run(self) -> None:
        """Predicts all scans of the loader."""
        if len(self.data_loader):
            super().run()
        else:
            self.fire_event(Events.STARTED)
            self.fire_event(Events.COMPLETED)

    def _iteration(self, engine: Engine, batchdata: dict[str, Any]) -> dict[str, Any]:
        name = batchdata["name"]
        try:
            return super()._iteration(engine, batchdata)
        except Exception as error:  # one scan must not end the run
            if user_error_in(error) is not None or isinstance(error, OSError):  # a full disk, which stays full
                raise
            logger.debug("%s", name, exc_info=True)
            reason = (str(error).strip().splitlines() or [""])[0]
            problem = f"cannot be predicted ({type(error).__name__}: {reason})"
            too_large = isinstance(error, (OutOfMemoryError, MemoryError))
            remedy = "give --sw_batch_size 1 or --device cpu" if too_large else "inspect it or leave it out"
            engine.state.batch = {"name": name, "problem": [problem], "remedy": [remedy]}
            return {}
