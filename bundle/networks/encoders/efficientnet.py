# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""EfficientNet: no level at full resolution; the classifier's head is not part of the encoder."""

from __future__ import annotations

from monai.networks.nets.efficientnet import EfficientNet

from bundle.cells import triple
from bundle.networks.encoders.encoder import Stage

__all__ = ["efficientnet_stages"]


def efficientnet_stages(network: EfficientNet) -> list[Stage]:
    """The levels of MONAI's `EfficientNetBNFeatures`: what comes before each strided stack, and the last.

    MONAI fixes each layer's padding for an image of the variant's own size (224 for b0); with b0, any map of whole
    cells is padded rightly. A variant whose padding moves the map off its cells says so when it runs.
    """
    modules = [network._conv_stem_padding, network._conv_stem, network._bn0, network._swish]  # noqa: SLF001 - no others
    step = triple(network._conv_stem.stride)  # noqa: SLF001
    stacks, settings = list(network._blocks), network._blocks_args  # noqa: SLF001
    stages, start = [], 0
    for end in network.extract_stacks:
        modules += stacks[start:end]
        stages.append(Stage(tuple(modules), settings[end - 1].output_filters, step))
        if end < len(stacks):
            modules, step, start = [], triple(settings[end].stride), end
    return stages
