# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""Downstream tasks, one folder each, from the data list to the report."""

from bundle.tasks.export_best import ExportBest
from bundle.tasks.network_record import network_settings
from bundle.tasks.schedule import fine_tune_schedule

__all__ = ["ExportBest", "fine_tune_schedule", "network_settings"]
