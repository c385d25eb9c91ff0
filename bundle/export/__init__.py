# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""The encoder in other file formats, each verified against the network it was made from."""

from bundle.export.export_model import Exported, export_model, verify_file
from bundle.export.formats import FORMATS, Format
from bundle.export.nnunet import copy_trainer, fit_plans, plan_axes, verify_nnunet, write_nnunet
from bundle.export.plain import PlainEncoder, PlainModel, plain_model, plain_network
from bundle.export.private import without_private
from bundle.export.verify import Verifier, compare_features, settings_text

__all__ = [
    "FORMATS",
    "Exported",
    "Format",
    "PlainEncoder",
    "PlainModel",
    "Verifier",
    "compare_features",
    "copy_trainer",
    "export_model",
    "fit_plans",
    "plain_model",
    "plain_network",
    "plan_axes",
    "settings_text",
    "verify_file",
    "verify_nnunet",
    "without_private",
    "write_nnunet",
]
