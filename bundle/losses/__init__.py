# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""Losses without parameters: reconstruction, cross-level alignment, their weighted sum, findings, and a detector's."""

from bundle.losses.alignment import AlignmentLoss
from bundle.losses.detection import DetectionLoss
from bundle.losses.findings import FindingsLoss
from bundle.losses.pretraining import PretrainingLoss
from bundle.losses.reconstruction import ReconstructionLoss

__all__ = ["AlignmentLoss", "DetectionLoss", "FindingsLoss", "PretrainingLoss", "ReconstructionLoss"]
