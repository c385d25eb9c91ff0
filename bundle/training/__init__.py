# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""What surrounds MONAI's trainer: starting a run, watching it, and keeping its state and its product."""

from bundle.training.batch_norm import ReestimateBatchNorm
from bundle.training.checkpoint import RunCheckpoint
from bundle.training.clipping import ClipGradients
from bundle.training.cost import CostReport
from bundle.training.curves import LearningCurves
from bundle.training.evaluation import EvaluationReport, RunCheckpointLoader
from bundle.training.export import ExportEncoder
from bundle.training.health import RepresentationHealth
from bundle.training.history import History
from bundle.training.loss_scaling import ScaleLoss
from bundle.training.objective_schedule import AlignmentWarmUp, UpdateTeacher, WarmUpObjective
from bundle.training.panels import ReconstructionPanels
from bundle.training.parameters import parameter_groups
from bundle.training.per_class import PerClass
from bundle.training.progress import Progress
from bundle.training.record import RecordConfig
from bundle.training.sampling import SetSamplerEpoch
from bundle.training.scalars import Scalars, latest_scalars
from bundle.training.schedule import training_steps, warmup_steps
from bundle.training.summary import Summary
from bundle.training.validation import ValidationLoss

__all__ = [
    "AlignmentWarmUp",
    "ClipGradients",
    "CostReport",
    "EvaluationReport",
    "ExportEncoder",
    "History",
    "LearningCurves",
    "PerClass",
    "Progress",
    "ReconstructionPanels",
    "RecordConfig",
    "ReestimateBatchNorm",
    "RepresentationHealth",
    "RunCheckpoint",
    "RunCheckpointLoader",
    "Scalars",
    "ScaleLoss",
    "SetSamplerEpoch",
    "Summary",
    "UpdateTeacher",
    "ValidationLoss",
    "WarmUpObjective",
    "latest_scalars",
    "parameter_groups",
    "training_steps",
    "warmup_steps",
]
