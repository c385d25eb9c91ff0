# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""Segmentation: label maps, deep supervision, heads, metrics, panels."""

from bundle.tasks.segmentation.classes import pick_classes
from bundle.tasks.segmentation.components import CleanComponentsd, clean_components
from bundle.tasks.segmentation.dicom_seg import SaveDicomSegd, check_dicom_seg, write_dicom_seg
from bundle.tasks.segmentation.evaluate import SegmentationEvaluation
from bundle.tasks.segmentation.find import find_segmentations
from bundle.tasks.segmentation.fit_heads import FitHeads
from bundle.tasks.segmentation.label_map import SaveLabelMapd, SaveProbabilitiesd, ToLabelMapd, ToProbabilitiesd
from bundle.tasks.segmentation.labels import (
    LabelsInForegroundd,
    ReadLabelMapd,
    check_classes,
    check_labelled,
    check_validated,
    report_unnamed,
    unnamed_values,
)
from bundle.tasks.segmentation.loss import StackedSupervisionLoss
from bundle.tasks.segmentation.measurements import MEASUREMENT_COLUMNS, MeasureClassesd, measure_classes
from bundle.tasks.segmentation.metrics import SurfaceDistanceInMm
from bundle.tasks.segmentation.network import build_segmentation_network
from bundle.tasks.segmentation.panels import SegmentationPanels, TrainingLabels
from bundle.tasks.segmentation.prediction_report import SegmentationReport
from bundle.tasks.segmentation.thick_slices import scratch_encoder

__all__ = [
    "MEASUREMENT_COLUMNS",
    "CleanComponentsd",
    "FitHeads",
    "LabelsInForegroundd",
    "MeasureClassesd",
    "ReadLabelMapd",
    "SaveDicomSegd",
    "SaveLabelMapd",
    "SaveProbabilitiesd",
    "SegmentationEvaluation",
    "SegmentationPanels",
    "SegmentationReport",
    "StackedSupervisionLoss",
    "SurfaceDistanceInMm",
    "ToLabelMapd",
    "ToProbabilitiesd",
    "TrainingLabels",
    "build_segmentation_network",
    "check_classes",
    "check_dicom_seg",
    "check_labelled",
    "check_validated",
    "clean_components",
    "find_segmentations",
    "measure_classes",
    "pick_classes",
    "report_unnamed",
    "scratch_encoder",
    "unnamed_values",
    "write_dicom_seg",
]
