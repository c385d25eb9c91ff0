# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""Encoders, the decoder and the pre-training network. A new encoder is an adapter in `encoders`."""

from bundle.networks.alignment_heads import DepthAlignmentHeads, Pairs
from bundle.networks.decoder import Decoder
from bundle.networks.encoders import Encoder, Level, build_encoder
from bundle.networks.pretraining import PretrainingNetwork, PretrainingOutput

__all__ = [
    "Decoder",
    "DepthAlignmentHeads",
    "Encoder",
    "Level",
    "Pairs",
    "PretrainingNetwork",
    "PretrainingOutput",
    "build_encoder",
]
