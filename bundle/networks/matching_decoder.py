# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""The decoder that belongs to an encoder."""

from __future__ import annotations

from bundle.networks.decoder import Decoder
from bundle.networks.encoders import Encoder
from bundle.networks.nnunet_decoder import NnunetDecoder
from bundle.networks.segres_decoder import SegResDecoder

__all__ = ["build_decoder"]


def build_decoder(
    *, encoder: Encoder, channels: int = 1, width: int = 64, max_width: int = 256, stride: int = 4
) -> Decoder | SegResDecoder | NnunetDecoder:
    """The other half of the encoder's network, at full resolution, where there is one; else a light decoder.

    A segmentation network can start from the other half as it starts from the encoder. A light decoder stops at a
    coarser level, fits any encoder, and is thrown away.

    Args:
        encoder: whose features are decoded. A SegResEncoder has SegResNetDS's decoder, nnU-Net's networks have their
            own.
        channels: of the volume to reconstruct.
        width: of a light decoder at its finest level.
        max_width: of a light decoder at any level.
        stride: at which a light decoder stops.

    Examples:
        >>> from bundle.networks import build_encoder
        >>> segres = build_encoder("SegResEncoder", init_filters=4, blocks_down=(1, 1, 1))
        >>> type(build_decoder(encoder=segres)).__name__
        'SegResDecoder'
        >>> type(build_decoder(encoder=build_encoder("DenseNet121"), width=8)).__name__
        'Decoder'
    """
    name, settings = encoder.settings["name"], encoder.settings
    if name in ("SegResEncoder", "SegResNetDS") and "anisotropic_scales" not in settings:
        return SegResDecoder(encoder=encoder, channels=channels)
    if name in ("ResidualEncoderUNet", "PlainConvUNet"):
        return NnunetDecoder(encoder=encoder, channels=channels)
    return Decoder(levels=encoder.levels, width=width, max_width=max_width, stride=stride, channels=channels)
