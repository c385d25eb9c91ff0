# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""A run: its folder, device, processes, options and checkpoints; what every command needs."""

from bundle.runs.device import autocast_dtype, pick_device
from bundle.runs.distributed import stop_distributed, wrap
from bundle.runs.folder import RunFolder, open_run_folder
from bundle.runs.lock import release_folders
from bundle.runs.run_settings import use_run_settings
from bundle.runs.shipped_model import ShippedModel, find_trained
from bundle.runs.start import start_run
from bundle.runs.steps import crops_per_process, training_steps
from bundle.runs.trained_run import TrainedRun, state_folder
from bundle.runs.workflow import CheckedWorkflow

__all__ = [
    "CheckedWorkflow",
    "RunFolder",
    "ShippedModel",
    "TrainedRun",
    "autocast_dtype",
    "crops_per_process",
    "find_trained",
    "open_run_folder",
    "pick_device",
    "release_folders",
    "start_run",
    "state_folder",
    "stop_distributed",
    "training_steps",
    "use_run_settings",
    "wrap",
]
