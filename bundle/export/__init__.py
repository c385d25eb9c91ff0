# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""The encoder in other file formats, each verified against the network it was made from."""

from bundle.export.export_model import Exported, export_model, verify_file
from bundle.export.formats import FORMATS
from bundle.export.plain import PlainEncoder, PlainModel, plain_model, plain_network

__all__ = [
    "FORMATS",
    "Exported",
    "PlainEncoder",
    "PlainModel",
    "export_model",
    "plain_model",
    "plain_network",
    "verify_file",
]
