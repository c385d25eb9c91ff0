# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""The one contract that every encoder meets: a MONAI network, the facts of its levels and the list of its features."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from bundle.cells import Triple
from bundle.networks.encoders.checkpointing import checkpointed, run
from bundle.networks.encoders.scale import Stream, rescaled, unit_factors
from bundle.sparse import SparseVolume, sync_over_visible_sites

__all__ = ["Encoder", "Level", "Stage"]


@dataclass(frozen=True)
class Level:
    """One level of an encoder: its channels, and the voxels per site on each axis."""

    channels: int
    stride: Triple


@dataclass(frozen=True)
class Stage:
    """The part of a network between two levels' features.

    Attributes:
        modules: of the network, in the order they run.
        channels: of the features they give.
        step: sites of the level before, or voxels, per site on each axis.
        stream: what sets the scale of the features where no norm does, or None.
    """

    modules: tuple[nn.Module, ...]
    channels: int
    step: Triple
    stream: Stream | None = None


class Encoder(nn.Module):
    """A MONAI network as a pre-training encoder: its stages run one after the other, each gives a level's features.

    The network itself stays as MONAI built it, keys and all, so what no stage uses, the decoder half of a U-Net or a
    classifier, is still there. Its parameters are frozen, so neither optimizer nor DistributedDataParallel waits for
    gradients they never get, and `network_state_dict` leaves them out.

    Args:
        network: the MONAI network.
        stages: its encoder half, finest first.

    Attributes:
        levels: of what `forward` returns, finest first.
        settings: the name and arguments that `build_encoder` was given.
    """

    settings: dict[str, Any]

    def __init__(self, network: nn.Module, stages: Sequence[Stage]) -> None:
        super().__init__()
        sync_over_visible_sites(network)
        self.network = network
        self.stages = list(stages)  # a plain list: the modules are registered once, as the network's
        self.levels: list[Level] = []
        stride = (1, 1, 1)
        for stage in self.stages:
            stride = (stride[0] * stage.step[0], stride[1] * stage.step[1], stride[2] * stage.step[2])
            self.levels.append(Level(stage.channels, stride))
        used = self._used()
        for parameter in network.parameters():
            parameter.requires_grad_(parameter.requires_grad and id(parameter) in used)

    @property
    def total_stride(self) -> Triple:
        """Voxels of a cell on each axis."""
        return self.levels[-1].stride

    def forward(self, x: Tensor | SparseVolume, recompute: int = 0) -> list[Any]:
        """Features of every level, finest first, as sparse or dense as `x`.

        Args:
            x: a batch of volumes.
            recompute: for so many of the finest levels keep only the features and compute all between them anew in the
                backward pass: less memory for more time (gradient checkpointing, Chen et al. 2016, arXiv:1604.06174).
        """
        features: list[Any] = []
        for i, stage in enumerate(self.stages):
            x = checkpointed(stage.modules, x) if i < recompute else run(stage.modules, x)
            features.append(x)
        return features

    def network_state_dict(self) -> dict[str, Tensor]:
        """The encoder half's weights under the network's own keys, detached but not copied.

        A network may hold one module under two names, as DynUNet does; all its keys are here, so that the weights also
        survive being merged into another network's state dict.
        """
        used = self._used()
        tensors = {
            **dict(self.network.named_parameters(remove_duplicate=False)),
            **dict(self.network.named_buffers(remove_duplicate=False)),
        }
        return {key: value for key, value in self.network.state_dict().items() if id(tensors[key]) in used}

    @torch.no_grad()
    def unit_factors(self, images: Sequence[Tensor]) -> list[float]:
        """What brings each level's features to a deviation of 1, where its scale is free (`scale.py`); else 1.

        Args:
            images: batches of whole, unmasked crops ``[B, C, D, H, W]`` to measure the features on.
        """
        modes = [(module, module.training) for module in self.modules()]
        self.eval()
        try:
            squares = [[level.float().var() for level in self(image)] for image in images]
        finally:
            for module, mode in modes:
                module.training = mode
        return unit_factors(self._streams(), torch.tensor(squares).mean(0).sqrt().tolist())

    def rescaled_state_dict(self, factors: Sequence[float]) -> dict[str, Tensor]:
        """`network_state_dict` with every level's features multiplied by a factor.

        Args:
            factors: those of `unit_factors`, finest level first.
        """
        return rescaled(self.network, self._streams(), factors, self.network_state_dict())

    def _streams(self) -> list[Stream | None]:
        return [stage.stream for stage in self.stages]

    def _used(self) -> set[int]:
        modules = [module for stage in self.stages for module in stage.modules]
        return {id(t) for module in modules for t in (*module.parameters(), *module.buffers())}
