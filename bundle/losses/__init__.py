# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""Losses without parameters: reconstruction, cross-level alignment, their weighted sum; deep supervision."""

from bundle.losses.alignment import AlignmentLoss
from bundle.losses.pretraining import PretrainingLoss
from bundle.losses.reconstruction import ReconstructionLoss
from bundle.losses.stacked_supervision import StackedSupervisionLoss

__all__ = ["AlignmentLoss", "PretrainingLoss", "ReconstructionLoss", "StackedSupervisionLoss"]
