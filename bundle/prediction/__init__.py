# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""Applies fine-tuned models to scans, on the scans' own grids."""

from bundle.prediction.fine_tuned import FineTuned

__all__ = ["FineTuned"]
