# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""The encoder of an nnU-Net plan."""

from __future__ import annotations

from bundle.data.nnunet import Plan
from bundle.networks.encoders.build import build_encoder
from bundle.networks.encoders.encoder import Encoder

__all__ = ["encoder_from_plan"]


def encoder_from_plan(plan: Plan) -> Encoder:
    """Builds the network of a plan, its axes in the order of the plan's arrays, its input channels those of a case.

    Args:
        plan: as `bundle.data.nnunet.read_plan` reads it.

    Raises:
        UserError: as `build_encoder`.
    """
    return build_encoder(plan.network, **plan.arguments)
