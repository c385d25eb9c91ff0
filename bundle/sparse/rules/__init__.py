# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""Rules: what a torch function does with a sparse volume."""

# importing registers them
from bundle.sparse.rules import channels, channels_last, convolution, norms, pointwise, pooling  # noqa: F401
