# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""A copy of a network for torch's exporters, without the one thing in MONAI's encoders that none of them takes."""

from __future__ import annotations

import copy
from functools import partial

import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["exportable"]


def exportable(network: nn.Module) -> nn.Module:
    """A frozen copy, with a module for each shortcut "A" of a ResNet, which MONAI keeps as a `functools.partial`."""
    network = copy.deepcopy(network).requires_grad_(False)
    for module in list(network.modules()):
        shortcut = getattr(module, "downsample", None)
        if isinstance(shortcut, partial):
            module.downsample = _ShortcutA(shortcut.keywords["planes"], shortcut.keywords["stride"])
    return network


class _ShortcutA(nn.Module):
    """Every `stride`-th voxel, and zeros for the channels that are new."""

    def __init__(self, channels: int, stride: int) -> None:
        super().__init__()
        self.channels, self.stride = channels, stride

    def forward(self, x: Tensor) -> Tensor:
        x = x[:, :, :: self.stride, :: self.stride, :: self.stride]
        return F.pad(x, [0, 0, 0, 0, 0, 0, 0, self.channels - x.shape[1]])
