# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""The page that a run leaves: one self-contained html file with figures, curves and pictures."""

from bundle.reports.report import Report, Section
from bundle.reports.viewer import Case

__all__ = ["Case", "Report", "Section"]
