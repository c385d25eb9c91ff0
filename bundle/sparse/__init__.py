# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""Sparse execution: unmodified networks on the visible part of a volume.

A new executor is a file in `executors/` with one `SparseVolume` subclass; a new operation is a function in `rules/`; a
new way to convolve is a function listed in `convolution/methods.py`.
"""

# importing registers the executors and the rules
from bundle.sparse import executors, rules  # noqa: F401
from bundle.sparse.layout import CellLayout
from bundle.sparse.sync_batch_norm import VisibleSyncBatchNorm, sync_over_visible_sites
from bundle.sparse.unsupported import UnsupportedOperation
from bundle.sparse.volume import SparseVolume

__all__ = ["CellLayout", "SparseVolume", "UnsupportedOperation", "VisibleSyncBatchNorm", "sync_over_visible_sites"]
