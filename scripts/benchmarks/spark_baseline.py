# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""SparK's way of being sparse, in 3D, as a baseline for scripts/benchmarks/speed.py.

Written anew after the description and code of Tian et al., ICLR 2023 (arXiv:2301.03580): dense convolutions followed by
a multiplication with the mask, norms that gather the active sites, normalise them as a matrix and scatter them back,
masks made anew in every layer, and a full-resolution dense decoder. No code is copied.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["SparKPretraining", "SparKStep", "make_spark"]


class _Mask:
    """Where the layers find the mask: one object for the network, as SparK has one global for the program."""

    def __init__(self) -> None:
        self.visible = torch.ones(1, 1, 1, 1, 1, dtype=torch.bool)

    def at(self, x: Tensor) -> Tensor:
        """The mask on the sites of a feature map; SparK repeats it in every layer."""
        mask = self.visible
        for axis in (2, 3, 4):
            mask = mask.repeat_interleave(x.shape[axis] // mask.shape[axis], axis)
        return mask


class _MaskedConv(nn.Module):
    def __init__(self, conv: nn.Conv3d, mask: _Mask) -> None:
        super().__init__()
        self.conv, self.mask = conv, mask
        self.stride = conv.stride

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.conv(x)
        return y * self.mask.at(y)


class _GatheredNorm(nn.Module):
    def __init__(self, norm: nn.BatchNorm3d, mask: _Mask) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(norm.num_features, eps=norm.eps, momentum=norm.momentum)
        self.norm.load_state_dict(norm.state_dict())
        self.mask = mask

    def forward(self, x: Tensor) -> Tensor:
        last = x.permute(0, 2, 3, 4, 1)
        active = self.mask.at(x)[:, 0].nonzero(as_tuple=True)
        out = torch.zeros_like(last)
        out[active] = self.norm(last[active])
        return out.permute(0, 4, 1, 2, 3)


def make_spark(network: nn.Module) -> _Mask:
    """Turns a network's convolutions and BatchNorms into SparK's, in place; returns the mask that they read."""
    mask = _Mask()
    for parent in list(network.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.Conv3d):
                setattr(parent, name, _MaskedConv(child, mask))
            elif isinstance(child, nn.BatchNorm3d):
                setattr(parent, name, _GatheredNorm(child, mask))
    return mask


class _UpBlock(nn.Module):
    """SparK's decoder block: transposed convolution of 4, stride 2, then two convolutions."""

    def __init__(self, channels: int, out: int) -> None:
        super().__init__()
        self.up = nn.ConvTranspose3d(channels, channels, kernel_size=4, stride=2, padding=1)
        self.conv = nn.Sequential(
            nn.Conv3d(channels, channels, 3, padding=1, bias=False),
            nn.BatchNorm3d(channels),
            nn.ReLU6(inplace=True),
            nn.Conv3d(channels, out, 3, padding=1, bias=False),
            nn.BatchNorm3d(out),
        )

    def forward(self, x: Tensor) -> Tensor:
        convolved: Tensor = self.conv(self.up(x))
        return convolved


class SparKStep(nn.Module):
    """SparK's whole network: masked encoder, densify at every level, dense decoder to full resolution.

    Args:
        encoder: gives a list of features, finest first; it is changed in place.
        channels: of its levels, finest first, each half as fine as the one before.
    """

    def __init__(self, encoder: nn.Module, channels: Sequence[int]) -> None:
        super().__init__()
        self.encoder, self.mask = encoder, make_spark(encoder)
        levels = list(channels)[::-1]
        self.norms = nn.ModuleList(_GatheredNorm(nn.BatchNorm3d(c), self.mask) for c in levels)
        self.tokens = nn.ParameterList(nn.init.trunc_normal_(torch.empty(1, c, 1, 1, 1), std=0.02) for c in levels)
        # 1x1x1 at the coarsest level, 3x3x3 elsewhere, as SparK's densify projections
        self.project = nn.ModuleList(
            nn.Conv3d(c, c, 3 if i else 1, padding=1 if i else 0) for i, c in enumerate(levels)
        )
        self.decode = nn.ModuleList(_UpBlock(a, b) for a, b in pairwise(levels))
        self.predict = nn.Conv3d(levels[-1], 1, 1)

    def forward(self, image: Tensor, visible: Tensor) -> Tensor:
        """``[B, 1, D, H, W]`` and bool ``[B, 1, d, h, w]`` on cells to a reconstruction like the image."""
        self.mask.visible = visible
        features = self.encoder(image * self.mask.at(image))[::-1]
        x = None
        for i, feature in enumerate(features):
            filled = torch.where(self.mask.at(feature), self.norms[i](feature), self.tokens[i])
            skip = self.project[i](filled)
            x = skip if x is None else self.decode[i - 1](x) + skip
        predicted: Tensor = self.predict(x)
        return predicted


class SparKPretraining(nn.Module):
    """`SparKStep` with the calls and the output of the bundle's own network, so that the bundle can train it.

    Args:
        encoder: as `build_encoder` makes it, with BatchNorm; it is changed in place.
        autocast: data type of automatic mixed precision in the forward pass, or None for full precision.
    """

    def __init__(self, *, encoder: Any, autocast: torch.dtype | None = None) -> None:
        super().__init__()
        self.encoder, self.autocast = encoder, autocast
        self.step = SparKStep(encoder, [level.channels for level in encoder.levels])

    def forward(self, image: Tensor, *, visible: Tensor, hidden: Tensor, **_: Any) -> dict[str, Any]:
        """As `bundle.networks.PretrainingNetwork`, of the crops alone."""
        with torch.autocast(image.device.type, dtype=self.autocast, enabled=self.autocast is not None):
            reconstruction = self.step(image, visible).to(image.dtype)
        output = {"reconstruction": reconstruction, "visible": visible, "hidden": hidden}
        return output | {"made": {"reconstruction": [reconstruction]}, "terms": {}}

    def update_teacher(self) -> None:
        """There is none."""

    def products(self, images: Sequence[Tensor] = ()) -> tuple[dict[str, Tensor], dict[str, Tensor]]:  # noqa: ARG002
        """The converted encoder's weights, as they are. Its decoder is part of no MONAI network."""
        return {key: value.detach().cpu().clone() for key, value in self.encoder.state_dict().items()}, {}
