# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""Scans without labels while a segmentation is fine-tuned: a mean teacher, and copy-paste both ways."""

from bundle.tasks.segmentation.unlabelled.copy_paste import CopyPaste
from bundle.tasks.segmentation.unlabelled.loss import SigmoidRampUp, supervise_regions
from bundle.tasks.segmentation.unlabelled.pairs import PairedCrops
from bundle.tasks.segmentation.unlabelled.predicted import PredictedLabels
from bundle.tasks.segmentation.unlabelled.pseudo_labels import PseudoLabels, single_components
from bundle.tasks.segmentation.unlabelled.teacher import MeanTeacher
from bundle.tasks.segmentation.unlabelled.transforms import without_labels
from bundle.tasks.segmentation.unlabelled.volumes import UnlabelledVolumes

__all__ = [
    "CopyPaste",
    "MeanTeacher",
    "PairedCrops",
    "PredictedLabels",
    "PseudoLabels",
    "SigmoidRampUp",
    "UnlabelledVolumes",
    "single_components",
    "supervise_regions",
    "without_labels",
]
