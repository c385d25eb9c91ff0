# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""nnU-Net's own network for segmentation, built from what `model.json` says of its encoder."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from bundle.errors import UserError
from bundle.networks.encoders.build import build_encoder

__all__ = ["NnunetSegmentation"]

_NETWORKS = ("ResidualEncoderUNet", "PlainConvUNet")


class NnunetSegmentation(nn.Module):
    """A ResidualEncoderUNet or a PlainConvUNet, with nnU-Net's own first weights and the names of its tensors.

    It gives the finest output only. nnU-Net builds a segmentation layer for each level of the decoder, also where it
    uses only one; the others are here, so that a checkpoint fits, but are not trained.

    Args:
        encoder: name and arguments, as for `build_encoder`.
        in_channels: of the image.
        out_channels: classes, with the background.

    Raises:
        UserError: if the encoder is another network's.
    """

    def __init__(self, *, encoder: Mapping[str, Any], in_channels: int = 1, out_channels: int = 2) -> None:
        super().__init__()
        settings = dict(encoder)
        if (name := settings.pop("name", None)) not in _NETWORKS:
            raise UserError(
                f"configs/finetune_nnunet.yaml is for the encoders {' and '.join(_NETWORKS)}, not {name}: choose the "
                "config of that encoder, see docs/how-to/finetune_segmentation.md"
            )
        channels = {"input_channels": in_channels, "num_classes": out_channels}
        network: Any = build_encoder(name, **{**settings, **channels}).network.requires_grad_(True)
        network.apply(network.initialize)
        self.encoder, self.decoder = network.encoder, network.decoder
        for layer in self.decoder.seg_layers[:-1]:
            layer.requires_grad_(False)

    def forward(self, image: Tensor) -> Tensor:
        """Scores ``[B, out_channels, D, H, W]`` of an image ``[B, in_channels, D, H, W]``."""
        scores: Tensor = self.decoder(self.encoder(image))
        return scores
