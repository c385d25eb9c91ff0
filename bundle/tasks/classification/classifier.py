# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""A pre-trained encoder with a linear head, for classification of whole volumes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from bundle.errors import UserError
from bundle.networks import build_encoder, build_feature_map

__all__ = ["EncoderClassifier"]

_POOLING = ("mean", "mean+max")


class EncoderClassifier(nn.Module):
    """Image to one logit per finding: dense encoder, pooling over the coarsest level, LayerNorm, dropout, linear head.

    The encoder's weights stand below `encoder.`, under the MONAI network's own keys. Any size of image will do that
    the encoder takes.

    Args:
        encoder: name and arguments, as for `build_encoder`.
        findings: number of logits.
        pooling: "mean" over the positions of the coarsest level, or "mean+max": both, one after the other.
        dropout: share of the pooled features set to 0 in training.

    Raises:
        UserError: if the encoder cannot be built, or pooling or dropout does not fit.
    """

    def __init__(
        self, encoder: Mapping[str, Any], *, findings: int, pooling: str = "mean", dropout: float = 0.0
    ) -> None:
        super().__init__()
        if pooling not in _POOLING:
            raise UserError(f"--pooling {pooling!r} is not known: choose one of {', '.join(_POOLING)}")
        if not 0 <= dropout < 1:
            raise UserError(f"--dropout {dropout} does not fit: give a share from 0 to below 1, such as 0.2")
        self.encoder = build_feature_map(encoder)
        with torch.device("meta"):  # no memory, no random numbers
            channels = build_encoder(**encoder).levels[-1].channels
        self.with_maximum = pooling == "mean+max"
        width = channels * (2 if self.with_maximum else 1)
        # nothing sets the scale of the features of a pre-activation network such as SegResNet; without a norm, weights
        # that pre-training left at a large one would start far above the loss of chance
        self.norm = nn.LayerNorm(width)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(width, findings)

    def forward(self, image: Tensor) -> Tensor:
        """Logits, float32 ``[B, findings]``.

        Args:
            image: ``[B, 1, D, H, W]``, prepared as in pre-training; each size a multiple of the encoder's total stride.
        """
        # float32 also under autocast: bfloat16 has few digits: volumes that differ would get one and the same logit
        features = self.encoder(image).float().flatten(2)
        with torch.autocast(image.device.type, enabled=False):
            pooled = features.mean(-1)
            if self.with_maximum:
                pooled = torch.cat([pooled, features.amax(-1)], dim=1)
            logits: Tensor = self.head(self.dropout(self.norm(pooled)))
        return logits
