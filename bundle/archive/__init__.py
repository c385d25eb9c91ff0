# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""The index of an archive: which files are which volumes, found once and kept; and a page that tells of it."""

from bundle.archive.estimate import Estimate
from bundle.archive.folder import IndexFolder
from bundle.archive.report import IndexReport
from bundle.archive.update import Update, update_index

__all__ = ["Estimate", "IndexFolder", "IndexReport", "Update", "update_index"]
