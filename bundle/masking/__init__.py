# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""Which part of a volume the encoder does not see. A new rule is a `MaskRule` subclass in `rules.py`."""

from bundle.masking.batch import MaskedBatch
from bundle.masking.levels import ChildLevel, LevelBatch, MaskInMask
from bundle.masking.rules import AdaptiveBlocks, MaskRule, PhysicalBlocks, UniformCells
from bundle.masking.sampler import BatchMask, MaskSampler
from bundle.masking.wide_field import WideField

__all__ = [
    "AdaptiveBlocks",
    "BatchMask",
    "ChildLevel",
    "LevelBatch",
    "MaskInMask",
    "MaskRule",
    "MaskSampler",
    "MaskedBatch",
    "PhysicalBlocks",
    "UniformCells",
    "WideField",
]
