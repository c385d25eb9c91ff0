# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""The decoder half of MONAI's SegResNetDS as pre-training decoder, so that fine-tuning can start from it as well."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from monai.networks.nets.segresnet_ds import SegResNetDS
from torch import Tensor, nn

from bundle.errors import UserError
from bundle.networks.encoders import Encoder
from bundle.networks.encoders.scale import Stream, rescaled
from bundle.sparse import SparseVolume

__all__ = ["SegResDecoder"]


class SegResDecoder(nn.Module):
    """SegResNetDS's own up path, at full resolution, on features whose holes are filled with mask tokens.

    In a U-Net most layers that a segmentation needs new are its decoder's. Pre-trained along with the encoder, they
    are a start that fine-tuning can take as it takes the encoder's (Wald et al., arXiv:2410.23132, transfer both).
    The features go in as they are, with no projection between, as in the network that will be fine-tuned.

    Args:
        encoder: a SegResEncoder, or the SegResNetDS that it is part of.
        channels: of the volume to reconstruct.

    Attributes:
        decoded_channels: of what `decode_each` gives, finest level first.

    Raises:
        UserError: if the encoder is another network.
    """

    def __init__(self, *, encoder: Encoder, channels: int = 1) -> None:
        super().__init__()
        settings = dict(encoder.settings)
        if (name := settings.pop("name")) not in ("SegResEncoder", "SegResNetDS"):
            raise UserError(
                f"decoder SegResDecoder is the other half of a SegResEncoder, not of {name}: choose that encoder, or "
                "the decoder bundle.networks.Decoder, which fits any"
            )
        if "anisotropic_scales" in settings:
            raise UserError("decoder SegResDecoder knows no anisotropic_scales: use SegResNetDS with its resolution")
        self.up_layers = SegResNetDS(**{**settings, "out_channels": channels, "dsdepth": 1}).up_layers
        self.decoded_channels = [level.channels for level in encoder.levels[:-1]]
        tokens = (torch.empty(level.channels) for level in encoder.levels)
        self.mask_tokens = nn.ParameterList(nn.init.trunc_normal_(token, std=0.02) for token in tokens)

    @property
    def refine(self) -> Iterator[nn.Module]:
        """The convolution blocks of each level, the part that is worth compiling."""
        return (level["blocks"] for level in self.up_layers)

    def rescaled_state_dict(self, factors: Sequence[float]) -> dict[str, Tensor]:
        """All weights, by SegResNetDS's own keys but for the mask tokens, to go with a rescaled encoder.

        Args:
            factors: that the encoder's features were multiplied by, finest level first; the up path's features of a
                level are then those of before times the same factor, and the reconstruction is the same.
        """
        streams = [
            Stream((up["upsample"],), tuple(b.conv2 for b in up["blocks"]), tuple(b.norm1 for b in up["blocks"]))
            for up in self.up_layers
        ]
        streams.append(Stream((self.up_layers[-1]["head"],), ()))
        *finer, deepest = factors
        weights = rescaled(self, streams, [*finer[::-1], 1.0], self.state_dict(), before=deepest)
        for i, factor in enumerate(factors):
            weights[f"mask_tokens.{i}"] *= factor
        return weights

    def forward(self, features: Sequence[SparseVolume]) -> Tensor:
        """The encoder's features, finest first, to ``[B, channels, D, H, W]``."""
        return self.reconstruct(self.decode(features))

    def decode(self, features: Sequence[SparseVolume]) -> Tensor:
        """The encoder's features, finest first, to the decoder's last: ``[B, init_filters, D, H, W]``."""
        return self.decode_each(features)[0]

    def decode_each(self, features: Sequence[SparseVolume]) -> list[Tensor]:
        """What the decoder makes at each of its levels, finest first: all but the encoder's coarsest."""
        *skips, x = (level.to_dense(fill=token) for level, token in zip(features, self.mask_tokens, strict=True))
        decoded = []
        for level, skip in zip(self.up_layers, reversed(skips), strict=True):
            x = level["blocks"](level["upsample"](x) + skip)
            decoded.append(x)
        return decoded[::-1]

    def reconstruct(self, decoded: Tensor) -> Tensor:
        """What `decode` made to ``[B, channels, D, H, W]``."""
        reconstruction: Tensor = self.up_layers[-1]["head"](decoded)
        return reconstruction
