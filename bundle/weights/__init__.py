# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""The files of a model: the encoder's weights, their settings, the decoder's weights."""

from bundle.weights.cards import CARDS, Card, PublishedEncoder, recognise
from bundle.weights.files import ModelFiles, checksum
from bundle.weights.layouts import name_foreign_network
from bundle.weights.load import load_strictly, read_settings
from bundle.weights.orientation import axis_order, ordered_axes, turn_array, turn_kernels
from bundle.weights.read import (
    list_wrappers,
    read_checkpoint,
    read_weights,
    require_finite,
    require_fractions,
    without_reconstruction,
)
from bundle.weights.settings import ModelSettings

__all__ = [
    "CARDS",
    "Card",
    "ModelFiles",
    "ModelSettings",
    "PublishedEncoder",
    "axis_order",
    "checksum",
    "list_wrappers",
    "load_strictly",
    "name_foreign_network",
    "ordered_axes",
    "read_checkpoint",
    "read_settings",
    "read_weights",
    "recognise",
    "require_finite",
    "require_fractions",
    "turn_array",
    "turn_kernels",
    "without_reconstruction",
]
