# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""Executors: how the features of a sparse volume are stored, and how the heavy operations run on them."""

# importing registers them; minkowski needs another library and is imported when it is asked for
from bundle.sparse.executors import auto, cells, masked  # noqa: F401
