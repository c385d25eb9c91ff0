# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""Applies fine-tuned models to scans, on the scans' own grids."""

from bundle.prediction.ensemble import LogMeanProbability, pick_mirrors
from bundle.prediction.evaluator import ScanEvaluator
from bundle.prediction.fine_tuned import FineTuned
from bundle.prediction.folder import PredictionFolder
from bundle.prediction.predict_first import labelled_scans, predicted_folder, seen_in_training, told_by_model
from bundle.prediction.report import TableReport
from bundle.prediction.scans import list_items, list_scans
from bundle.prediction.table import PredictionTables

__all__ = [
    "FineTuned",
    "LogMeanProbability",
    "PredictionFolder",
    "PredictionTables",
    "ScanEvaluator",
    "TableReport",
    "labelled_scans",
    "list_items",
    "list_scans",
    "pick_mirrors",
    "predicted_folder",
    "seen_in_training",
    "told_by_model",
]
