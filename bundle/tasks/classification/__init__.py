# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""Classification of findings of whole volumes."""

from bundle.tasks.classification.classifier import EncoderClassifier
from bundle.tasks.classification.evaluate import ClassificationEvaluation
from bundle.tasks.classification.find import check_findings, find_findings
from bundle.tasks.classification.finding_counts import FindingCounts
from bundle.tasks.classification.input_size import FitInputd
from bundle.tasks.classification.labels import FindingsTensord
from bundle.tasks.classification.loss import MaskedBCEWithLogitsLoss
from bundle.tasks.classification.metrics import FindingsROCAUC, LossOfAllVolumes
from bundle.tasks.classification.predict import (
    DecideFindingsd,
    FindingProbabilities,
    build_classifier,
    finding_columns,
    mean_thresholds,
)
from bundle.tasks.classification.report import FindingsReport
from bundle.tasks.classification.thresholds import Thresholds, youden_threshold
from bundle.tasks.classification.window_mean import WindowMean

__all__ = [
    "ClassificationEvaluation",
    "DecideFindingsd",
    "EncoderClassifier",
    "FindingCounts",
    "FindingProbabilities",
    "FindingsROCAUC",
    "FindingsReport",
    "FindingsTensord",
    "FitInputd",
    "LossOfAllVolumes",
    "MaskedBCEWithLogitsLoss",
    "Thresholds",
    "WindowMean",
    "build_classifier",
    "check_findings",
    "find_findings",
    "finding_columns",
    "mean_thresholds",
    "youden_threshold",
]
