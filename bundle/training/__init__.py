# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""What surrounds MONAI's trainer: starting a run, watching it, and keeping its state and its product."""

from bundle.training.accumulation import Accumulate
from bundle.training.batch_norm import ReestimateBatchNorm
from bundle.training.checkpoint import RunCheckpoint
from bundle.training.cost import CostReport
from bundle.training.distillation import CollapseWarning, TeacherMomentum, TeacherTemperature
from bundle.training.evaluation import EvaluationReport, RunCheckpointLoader
from bundle.training.export import ExportEncoder
from bundle.training.gradients import ClipGradients, ScaleLoss
from bundle.training.health import RepresentationHealth
from bundle.training.history import History
from bundle.training.objective_schedule import UpdateTeacher, WarmUpObjective
from bundle.training.optimization import parameter_groups, warmup_cosine
from bundle.training.panels import ReconstructionPanels
from bundle.training.per_class import PerClass
from bundle.training.progress import Progress
from bundle.training.record import RecordConfig
from bundle.training.same_data import earlier_split
from bundle.training.sampling import SetSamplerEpoch
from bundle.training.scalars import Scalars
from bundle.training.summary import Summary
from bundle.training.target_range import TargetRange
from bundle.training.tensorboard import TensorBoard
from bundle.training.validation import SameBuffers, ValidateLastEpoch, ValidationLoss

__all__ = [
    "Accumulate",
    "ClipGradients",
    "CollapseWarning",
    "CostReport",
    "EvaluationReport",
    "ExportEncoder",
    "History",
    "PerClass",
    "Progress",
    "ReconstructionPanels",
    "RecordConfig",
    "ReestimateBatchNorm",
    "RepresentationHealth",
    "RunCheckpoint",
    "RunCheckpointLoader",
    "SameBuffers",
    "Scalars",
    "ScaleLoss",
    "SetSamplerEpoch",
    "Summary",
    "TargetRange",
    "TeacherMomentum",
    "TeacherTemperature",
    "TensorBoard",
    "UpdateTeacher",
    "ValidateLastEpoch",
    "ValidationLoss",
    "WarmUpObjective",
    "earlier_split",
    "parameter_groups",
    "warmup_cosine",
]
