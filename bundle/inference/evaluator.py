# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""MONAI's evaluator, for a folder in which a volume may be broken."""

from __future__ import annotations

from typing import Any

from ignite.engine import Engine
from monai.engines import SupervisedEvaluator

__all__ = ["VolumeEvaluator"]


class VolumeEvaluator(SupervisedEvaluator):
    """A `SupervisedEvaluator` that does nothing with a batch of `VolumeDataset` that has no image.

    Such an iteration has an empty output, and none of the events between which MONAI decollates and post-processes.
    """

    def _iteration(self, engine: Engine, batchdata: dict[str, Any]) -> dict[str, Any]:
        if "problem" in batchdata:
            return {}
        output: dict[str, Any] = super()._iteration(engine, batchdata)
        return output
