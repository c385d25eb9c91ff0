# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""Densify and decode: from the visible features to a reconstruction of the whole crop."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import torch
from torch import Tensor, nn

from bundle.errors import UserError
from bundle.networks.encoders import Level
from bundle.sparse import SparseVolume

__all__ = ["Decoder", "Densify"]


class Densify(nn.Module):
    """Visible features to a dense map with a learned mask token in the holes (SparK, arXiv:2301.03580, section 3.3).

    Norm and 1x1x1 projection run on visible sites only, then the token, one value per projected channel, fills the
    absent ones. The decoder's 3x3x3 convolution that follows takes the place of the paper's 3x3 projection.

    Args:
        channels: of the encoder's level.
        width: channels of the dense map.
    """

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.norm = nn.InstanceNorm3d(channels, affine=True)
        self.project = nn.Conv3d(channels, width, kernel_size=1)
        self.mask_token = nn.Parameter(nn.init.trunc_normal_(torch.empty(width), std=0.02))

    def forward(self, features: SparseVolume) -> Tensor:
        """``[B, channels, d, h, w]`` sparse -> ``[B, width, d, h, w]`` dense."""
        projected: SparseVolume = self.project(self.norm(features))
        return projected.to_dense(fill=self.mask_token)


class Decoder(nn.Module):
    """A light U-shaped decoder that stops at a coarse level and predicts the voxels of each of its sites at once.

    Full-resolution stages would cost more than the sparse encoder; a site of the last stage instead predicts its
    ``stride^3`` voxels by one linear map, as masked autoencoders do from their tokens.

    Args:
        levels: the encoder's levels, finest first.
        width: channels at the decoder's finest level; they double per level up to `max_width`.
        max_width: the most channels of any level.
        stride: voxels per site (on the axis with most) at which decoding stops; a level of the encoder's.
        blocks: convolution blocks per level.
        channels: of the volume to reconstruct.

    Attributes:
        decoded_channels: of what `decode_each` gives, finest level first.

    Raises:
        UserError: if the encoder has no level of that stride.
    """

    def __init__(
        self,
        *,
        levels: Sequence[Level],
        width: int = 64,
        max_width: int = 256,
        stride: int = 4,
        blocks: int = 1,
        channels: int = 1,
    ) -> None:
        super().__init__()
        strides = [max(level.stride) for level in levels]
        if stride not in strides:
            raise UserError(
                f"decoder#stride {stride} is no level of the encoder: choose one of {', '.join(map(str, strides))}"
            )
        self.levels = list(levels[strides.index(stride) :])
        self.channels = channels
        widths = [min(width * 2**i, max_width) for i in range(len(self.levels))]
        self.decoded_channels = widths
        self.densify = nn.ModuleList(Densify(level.channels, w) for level, w in zip(self.levels, widths))
        self.refine = nn.ModuleList(nn.Sequential(*(_block(w) for _ in range(blocks))) for w in widths)
        self.upsample = nn.ModuleList()
        for fine, coarse, w, w_coarse in zip(self.levels, self.levels[1:], widths, widths[1:]):
            (c0, c1, c2), (f0, f1, f2) = coarse.stride, fine.stride
            step = (c0 // f0, c1 // f1, c2 // f2)
            self.upsample.append(nn.ConvTranspose3d(w_coarse, w, kernel_size=step, stride=step, bias=False))
        self.predict = nn.Conv3d(widths[0], channels * prod(self.levels[0].stride), kernel_size=1)

    def forward(self, features: Sequence[SparseVolume]) -> Tensor:
        """The encoder's features, finest first, to ``[B, channels, D, H, W]``."""
        return self.reconstruct(self.decode(features))

    def decode(self, features: Sequence[SparseVolume]) -> Tensor:
        """The encoder's features, finest first, to the decoder's last: ``[B, width, d, h, w]`` at its stride."""
        return self.decode_each(features)[0]

    def decode_each(self, features: Sequence[SparseVolume]) -> list[Tensor]:
        """What the decoder makes at each of its levels, finest first."""
        used = features[-len(self.levels) :]
        x = self.refine[-1](self.densify[-1](used[-1]))
        decoded = [x]
        for i in reversed(range(len(self.levels) - 1)):
            x = self.refine[i](self.upsample[i](x) + self.densify[i](used[i]))
            decoded.append(x)
        return decoded[::-1]

    def reconstruct(self, decoded: Tensor) -> Tensor:
        """What `decode` made to ``[B, channels, D, H, W]``: a site's values are ``stride^3`` voxels."""
        return self._voxels(self.predict(decoded))

    def _voxels(self, x: Tensor) -> Tensor:
        """``[B, channels * sd * sh * sw, d, h, w]`` -> ``[B, channels, d * sd, h * sh, w * sw]``."""
        b, _, d, h, w = x.shape
        sd, sh, sw = self.levels[0].stride
        x = x.view(b, self.channels, sd, sh, sw, d, h, w).permute(0, 1, 5, 2, 6, 3, 7, 4)
        return x.reshape(b, self.channels, d * sd, h * sh, w * sw)


def _block(width: int) -> nn.Module:
    return nn.Sequential(
        nn.Conv3d(width, width, kernel_size=3, padding=1, bias=False),
        nn.InstanceNorm3d(width, affine=True),
        nn.LeakyReLU(0.01, inplace=True),
    )
