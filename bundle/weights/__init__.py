# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""The files of a model: the encoder's weights, their settings, the decoder's weights."""

from bundle.weights.files import ModelFiles, checksum
from bundle.weights.load import load_strictly, read_settings
from bundle.weights.read import list_wrappers, read_weights, require_finite, without_reconstruction
from bundle.weights.settings import ModelSettings

__all__ = [
    "ModelFiles",
    "ModelSettings",
    "checksum",
    "list_wrappers",
    "load_strictly",
    "read_settings",
    "read_weights",
    "require_finite",
    "without_reconstruction",
]
