# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""Brings the features of every level to unit scale, without changing what they say.

In a network of pre-activation residual blocks (SegResNet, MedNeXt) nothing normalises the stream that the blocks add
to: each block normalises what it reads. The scale of the stream is therefore free, and pre-training lets it grow level
by level; a deviation of 2 at the finest and above 1000 at the deepest level was seen. A decoder that starts from
scratch on such features starts with losses far above those of chance.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

__all__ = ["Stream", "at_unit_scale"]


@dataclass(frozen=True)
class Stream:
    """The parts of a stage that set the scale of its residual stream.

    Attributes:
        entry: convolutions that read the stage's input, at the scale of the level before, and begin the stream.
        branches: convolutions that end the stage's residual branches, reading normalised features.
        norms: norms that read the stream.
    """

    entry: tuple[nn.Module, ...]
    branches: tuple[nn.Module, ...]
    norms: tuple[nn.Module, ...] = ()


@torch.no_grad()
def at_unit_scale(
    network: nn.Module, streams: Sequence[Stream | None], deviations: Sequence[float], keys: dict[str, Tensor]
) -> dict[str, Tensor]:
    """Weights with which every level's features have a standard deviation of 1, and are else the same.

    Exact but for the small constants that norms add to a variance. Stages that have no such stream end in a norm, or in
    a sum of normalised branches, and keep their scale; if any stage is such, all weights stay.

    Args:
        network: that the streams are parts of.
        streams: of each level, finest first.
        deviations: of each level's features, on whole, unmasked crops.
        keys: the network's tensors by their names, as to be returned.

    Returns:
        New tensors for all of `keys`.
    """
    scaled = {key: value.detach().clone() for key, value in keys.items()}
    known = [stream for stream in streams if stream is not None]
    if len(known) < len(streams):
        return scaled
    factors = [1 / max(deviation, 1e-6) for deviation in deviations]
    change: dict[int, float] = {}
    for depth, (stream, factor) in enumerate(zip(known, factors, strict=True)):
        before = factors[depth - 1] if depth else 1.0
        for modules, of_weight in ((stream.entry, factor / before), (stream.branches, factor)):
            for module in modules:
                for name, parameter in module.named_parameters():
                    change[id(parameter)] = factor if name.endswith("bias") else of_weight
        for norm in stream.norms:
            if isinstance(norm, _BatchNorm) and norm.running_mean is not None and norm.running_var is not None:
                change[id(norm.running_mean)] = factor
                change[id(norm.running_var)] = factor**2
    tensors = {
        **dict(network.named_parameters(remove_duplicate=False)),
        **dict(network.named_buffers(remove_duplicate=False)),
    }
    for key in scaled:
        if id(tensors[key]) in change:
            scaled[key] *= change[id(tensors[key])]
    return scaled
