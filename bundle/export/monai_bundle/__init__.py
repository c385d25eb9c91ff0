# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""A fine-tuned segmentation run as a MONAI bundle of its own."""

from bundle.export.monai_bundle.finished_run import FinishedRun
from bundle.export.monai_bundle.inference_config import inference_config, needs_package
from bundle.export.monai_bundle.metadata import metadata
from bundle.export.monai_bundle.model_card import data_licence, model_card
from bundle.export.monai_bundle.write import Exported, export_bundle

__all__ = [
    "Exported",
    "FinishedRun",
    "data_licence",
    "export_bundle",
    "inference_config",
    "metadata",
    "model_card",
    "needs_package",
]
