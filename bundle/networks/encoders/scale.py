# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""Brings the features of every level to unit scale, without changing what they say.

In a network of pre-activation residual blocks (SegResNet, MedNeXt) nothing normalises the stream that the blocks add
to: each block normalises what it reads. The scale of the stream is therefore free, and pre-training lets it grow level
by level; a deviation of 2 at the finest and above 1000 at the deepest level was seen. A decoder that starts from
scratch on such features starts with losses far above those of chance.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

__all__ = ["Stream", "rescaled", "unit_factors"]


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


def unit_factors(streams: Sequence[Stream | None], deviations: Sequence[float]) -> list[float]:
    """What to multiply each level's features by for a standard deviation of 1.

    A stage without a stream ends in a norm, or in a sum of normalised branches, and keeps its scale. If there is one,
    all factors are 1.

    Args:
        streams: of each level, finest first.
        deviations: of each level's features, on whole, unmasked crops.
    """
    if any(stream is None for stream in streams):
        return [1.0] * len(streams)
    return [1 / max(deviation, 1e-6) for deviation in deviations]


@torch.no_grad()
def rescaled(
    network: nn.Module,
    streams: Sequence[Stream | None],
    factors: Sequence[float],
    keys: Mapping[str, Tensor],
    before: float = 1.0,
) -> dict[str, Tensor]:
    """Weights with which the features after each stage are multiplied by its factor, and are else the same.

    Exact but for the small constants that norms add to a variance.

    Args:
        network: that the streams are parts of.
        streams: of each stage, in the order they run; None where the factor is 1.
        factors: of each stage.
        keys: the network's tensors by their names, as to be returned.
        before: the factor of what the first stage reads.

    Returns:
        New tensors for all of `keys`.
    """
    change: dict[int, float] = {}
    for stream, factor in zip(streams, factors, strict=True):
        for modules, weight_factor in ((stream.entry, factor / before), (stream.branches, factor)) if stream else ():
            for module in modules:
                for name, parameter in module.named_parameters():
                    change[id(parameter)] = factor if name.endswith("bias") else weight_factor
        for norm in stream.norms if stream else ():
            if isinstance(norm, _BatchNorm) and norm.running_mean is not None and norm.running_var is not None:
                change[id(norm.running_mean)] = factor
                change[id(norm.running_var)] = factor**2
        before = factor
    tensors = {
        **dict(network.named_parameters(remove_duplicate=False)),
        **dict(network.named_buffers(remove_duplicate=False)),
    }
    # a tensor under two names stays one tensor, so that a file holds it once
    scaled = {id(tensors[key]): value.detach().clone() * change.get(id(tensors[key]), 1) for key, value in keys.items()}
    return {key: scaled[id(tensors[key])] for key in keys}
