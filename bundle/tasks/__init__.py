# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""Downstream tasks, one folder each, from the data list to the report."""

from bundle.tasks.export_best import ExportBest

__all__ = ["ExportBest"]
