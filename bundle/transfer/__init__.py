# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""From pre-trained weights to a downstream network, with a report of what went where."""

from bundle.transfer.average import AveragedModel, average_models
from bundle.transfer.groups import layer_wise_groups
from bundle.transfer.heads import fit_heads, is_head
from bundle.transfer.load import load_decoder, load_encoder
from bundle.transfer.report import TransferReport
from bundle.transfer.schedule import FineTuneSchedule
from bundle.transfer.settings import PretrainedSettings
from bundle.transfer.start import load_start, origin
from bundle.transfer.transfer import Transfer

__all__ = [
    "AveragedModel",
    "FineTuneSchedule",
    "PretrainedSettings",
    "Transfer",
    "TransferReport",
    "average_models",
    "fit_heads",
    "is_head",
    "layer_wise_groups",
    "load_decoder",
    "load_encoder",
    "load_start",
    "origin",
]
