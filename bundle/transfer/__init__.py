# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""From pre-trained weights to a downstream network, with a report of what went where."""

from bundle.transfer.load import load_encoder, read_weights
from bundle.transfer.report import TransferReport

__all__ = ["TransferReport", "load_encoder", "read_weights"]
