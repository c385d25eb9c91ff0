# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""Part g: parts b and c once more for nnU-Net's ResEnc-L, in the cases that tell most."""

from __future__ import annotations

import importlib.util

import speed
from gpu_parts.context import Context
from gpu_parts.profiling import profile_cells
from gpu_parts.timing import ENCODERS, Turns, time_cases

__all__ = ["run"]

#: of the step, and of the encoder in the end; SparK is not among them: it knows BatchNorm, this encoder InstanceNorm
MASKED = ("cells", "masked")


def run(context: Context) -> None:
    """Times and profiles it, if its package is there."""
    if importlib.util.find_spec("dynamic_network_architectures") is None:
        context.note("no ResEnc-L: dynamic-network-architectures is not installed")
        return
    speed.use_encoder(**context.settings.resenc)
    size, (first, *others) = context.settings.sizes[0], context.settings.ratios
    cases = [Turns("encoder", size, ratio, ENCODERS) for ratio in (first, *others)]
    cases += [Turns("step", size, first, MASKED), Turns("encoder", size, first, MASKED)]
    _, seconds = time_cases(context, cases)
    if context.remaining() > seconds / 2:
        profile_cells(context)
