# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""What surrounds MONAI's trainer: starting a run, watching it, and keeping its state and its product."""

from bundle.training.alignment_schedule import AlignmentWarmUp, UpdateTeacher
from bundle.training.batch_norm import ReestimateBatchNorm
from bundle.training.best_model import ExportBest
from bundle.training.checkpoint import RunCheckpoint
from bundle.training.clipping import ClipGradients
from bundle.training.cost import CostReport
from bundle.training.curves import LearningCurves
from bundle.training.detection_batch import BoxBatch
from bundle.training.detection_metrics import AveragePrecision
from bundle.training.detection_panels import DetectionPanels
from bundle.training.detection_table import PredictedBoxes
from bundle.training.device import autocast_dtype, pick_device
from bundle.training.distributed import is_not_main_rank, stop_distributed, wrap
from bundle.training.evaluation import EvaluationReport, RunCheckpointLoader
from bundle.training.export import ExportEncoder
from bundle.training.findings_metrics import FindingsROCAUC, LossOfAllVolumes
from bundle.training.findings_report import FindingsReport
from bundle.training.fit_heads import FitHeads
from bundle.training.health import RepresentationHealth
from bundle.training.history import History
from bundle.training.loss_scaling import ScaleLoss
from bundle.training.panels import ReconstructionPanels
from bundle.training.parameters import parameter_groups
from bundle.training.prepare_batch import MaskedBatch
from bundle.training.progress import Progress
from bundle.training.record import RecordConfig
from bundle.training.run_settings import use_run_settings
from bundle.training.rundir import RunFolder, open_run_folder
from bundle.training.sampling import SetSamplerEpoch
from bundle.training.scalars import Scalars, latest_scalars
from bundle.training.schedule import training_steps, warmup_steps
from bundle.training.segmentation_metrics import PerClass, SurfaceDistanceInMm
from bundle.training.segmentation_panels import SegmentationPanels
from bundle.training.shipped_model import ShippedModel, find_trained
from bundle.training.start import start_run
from bundle.training.summary import Summary
from bundle.training.trained_run import TrainedRun
from bundle.training.validation import ValidationLoss
from bundle.training.window_mean import WindowMean

__all__ = [
    "AlignmentWarmUp",
    "AveragePrecision",
    "BoxBatch",
    "ClipGradients",
    "CostReport",
    "DetectionPanels",
    "EvaluationReport",
    "ExportBest",
    "ExportEncoder",
    "FindingsROCAUC",
    "FindingsReport",
    "FitHeads",
    "History",
    "LearningCurves",
    "LossOfAllVolumes",
    "MaskedBatch",
    "PerClass",
    "PredictedBoxes",
    "Progress",
    "ReconstructionPanels",
    "RecordConfig",
    "ReestimateBatchNorm",
    "RepresentationHealth",
    "RunCheckpoint",
    "RunCheckpointLoader",
    "RunFolder",
    "Scalars",
    "ScaleLoss",
    "SegmentationPanels",
    "SetSamplerEpoch",
    "ShippedModel",
    "Summary",
    "SurfaceDistanceInMm",
    "TrainedRun",
    "UpdateTeacher",
    "ValidationLoss",
    "WindowMean",
    "autocast_dtype",
    "find_trained",
    "is_not_main_rank",
    "latest_scalars",
    "open_run_folder",
    "parameter_groups",
    "pick_device",
    "start_run",
    "stop_distributed",
    "training_steps",
    "use_run_settings",
    "warmup_steps",
    "wrap",
]
