# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""Encoders: unmodified MONAI networks behind one contract.

A new encoder is a function from the network to its stages, and a line in `build.ENCODERS`; or outside the package, a
function that returns an `Encoder`, named in the config by its dotted name.
"""

from bundle.networks.encoders.build import ENCODERS, build_encoder
from bundle.networks.encoders.encoder import Encoder, Level, Stage

__all__ = ["ENCODERS", "Encoder", "Level", "Stage", "build_encoder"]
