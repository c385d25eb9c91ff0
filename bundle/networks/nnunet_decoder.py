# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""The decoder half of nnU-Net's networks as pre-training decoder, so that nnU-Net can start from it as well."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from bundle.errors import UserError
from bundle.networks.encoders import Encoder
from bundle.networks.encoders.build import build_encoder
from bundle.sparse import SparseVolume

__all__ = ["NnunetDecoder"]

_NETWORKS = ("ResidualEncoderUNet", "PlainConvUNet")


class NnunetDecoder(nn.Module):
    """nnU-Net's own decoder, at full resolution, on features whose holes are filled with mask tokens.

    It is `SegResDecoder` for nnU-Net's networks. Its tensors have the names that nnU-Net gives them below `decoder.`,
    but for the mask tokens and the last layer, `head`, which takes the place of the segmentation layers.

    Args:
        encoder: a ResidualEncoderUNet or a PlainConvUNet.
        channels: of the volume to reconstruct.

    Attributes:
        decoded_channels: of what `decode_each` gives, finest level first.

    Raises:
        UserError: if the encoder is another network.
    """

    def __init__(self, *, encoder: Encoder, channels: int = 1) -> None:
        super().__init__()
        settings = dict(encoder.settings)
        if (name := settings.pop("name")) not in _NETWORKS:
            raise UserError(
                f"decoder NnunetDecoder is the other half of {' or '.join(_NETWORKS)}, not of {name}: choose that "
                "encoder, or the decoder bundle.networks.Decoder, which fits any"
            )
        network: Any = build_encoder(name, **settings).network.requires_grad_(True)
        network.apply(network.initialize)  # as nnU-Net begins
        self.stages, self.transpconvs = network.decoder.stages, network.decoder.transpconvs
        self.head = nn.Conv3d(encoder.levels[0].channels, channels, kernel_size=1)
        self.decoded_channels = [level.channels for level in encoder.levels[:-1]]
        tokens = (torch.empty(level.channels) for level in encoder.levels)
        self.mask_tokens = nn.ParameterList(nn.init.trunc_normal_(token, std=0.02) for token in tokens)

    @property
    def refine(self) -> Iterator[nn.Module]:
        """The convolution blocks of each level, the part that is worth compiling."""
        return iter(self.stages)

    def rescaled_state_dict(self, factors: Sequence[float]) -> dict[str, Tensor]:
        """All weights. Norms fix the scale of nnU-Net's features, so the encoder's factors are 1."""
        assert all(factor == 1 for factor in factors)
        return dict(self.state_dict())

    def forward(self, features: Sequence[SparseVolume]) -> Tensor:
        """The encoder's features, finest first, to ``[B, channels, D, H, W]``."""
        return self.reconstruct(self.decode(features))

    def decode(self, features: Sequence[SparseVolume]) -> Tensor:
        """The encoder's features, finest first, to the decoder's last, at full resolution."""
        return self.decode_each(features)[0]

    def decode_each(self, features: Sequence[SparseVolume]) -> list[Tensor]:
        """What the decoder makes at each of its levels, finest first: all but the encoder's coarsest."""
        *skips, x = (level.to_dense(fill=token) for level, token in zip(features, self.mask_tokens, strict=True))
        decoded = []
        for upsample, stage, skip in zip(self.transpconvs, self.stages, reversed(skips), strict=True):
            x = stage(torch.cat((upsample(x), skip), 1))
            decoded.append(x)
        return decoded[::-1]

    def reconstruct(self, decoded: Tensor) -> Tensor:
        """What `decode` made to ``[B, channels, D, H, W]``."""
        reconstruction: Tensor = self.head(decoded)
        return reconstruction
