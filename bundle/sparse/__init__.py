# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""Sparse execution: unmodified networks on the visible part of a volume.

What a torch function does is a rule (`rules/`), how features are stored is an executor (`executors/`), and how a
convolution is computed is a method (`convolution/methods.py`). docs/explanation/sparse_execution.md explains them.
"""

# importing registers the executors and the rules
from bundle.sparse import executors, rules  # noqa: F401
from bundle.sparse.convolution.methods import Method, register_method
from bundle.sparse.layout import CellLayout
from bundle.sparse.recompute import checkpoint_volumes
from bundle.sparse.sync_batch_norm import VisibleSyncBatchNorm, sync_over_visible_sites
from bundle.sparse.unsupported import UnsupportedOperation
from bundle.sparse.volume import SparseVolume, rule
from bundle.sparse.windows import Window

__all__ = [
    "CellLayout",
    "Method",
    "SparseVolume",
    "UnsupportedOperation",
    "VisibleSyncBatchNorm",
    "Window",
    "checkpoint_volumes",
    "register_method",
    "rule",
    "sync_over_visible_sites",
]
