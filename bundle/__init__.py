# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""Sparse Mask-in-Mask pre-training for 3D medical images, as components that MONAI Bundle configs name.

Data flows one way: data -> masking -> sparse -> networks -> losses -> training; transfer uses networks.
"""
