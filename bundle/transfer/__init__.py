# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""From pre-trained weights to a downstream network, with a report of what went where, and to other file formats."""

from bundle.networks import fit_heads
from bundle.transfer.export import Exported, export_model, verify_file
from bundle.transfer.formats import FORMATS
from bundle.transfer.groups import layer_wise_groups
from bundle.transfer.load import load_decoder, load_encoder, read_weights
from bundle.transfer.plain import PlainEncoder, PlainModel, plain_model, plain_network
from bundle.transfer.report import TransferReport
from bundle.transfer.schedule import FineTuneSchedule
from bundle.transfer.settings import PretrainedSettings
from bundle.transfer.transfer import Transfer

__all__ = [
    "FORMATS",
    "Exported",
    "FineTuneSchedule",
    "PlainEncoder",
    "PlainModel",
    "PretrainedSettings",
    "Transfer",
    "TransferReport",
    "export_model",
    "fit_heads",
    "layer_wise_groups",
    "load_decoder",
    "load_encoder",
    "plain_model",
    "plain_network",
    "read_weights",
    "verify_file",
]
