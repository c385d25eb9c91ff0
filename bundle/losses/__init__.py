# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""Losses without parameters: of pre-training, of findings, of a detector, and deep supervision."""

from bundle.losses.alignment import AlignmentLoss
from bundle.losses.decorrelation import Decorrelation, effective_dimensions
from bundle.losses.distillation import Distillation
from bundle.losses.histogram import Histogram
from bundle.losses.objectives import Alignment, Reconstruction
from bundle.losses.pretext_segmentation import PretextSegmentation
from bundle.losses.pretraining import PretrainingLoss
from bundle.losses.reconstruction import ReconstructionLoss

__all__ = [
    "Alignment",
    "AlignmentLoss",
    "Decorrelation",
    "Distillation",
    "Histogram",
    "PretextSegmentation",
    "PretrainingLoss",
    "Reconstruction",
    "ReconstructionLoss",
    "effective_dimensions",
]
