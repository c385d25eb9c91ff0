# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""Programs for GPUs, in Triton. Tensors go in and come out; nothing here knows a layout or a network."""
