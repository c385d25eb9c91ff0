# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""The pre-training network: sparse encoder, densify, decoder and alignment heads in one module."""

from __future__ import annotations

from typing import TypedDict

import torch
from torch import Tensor, nn

from bundle.networks.alignment_heads import DepthAlignmentHeads, Pairs
from bundle.networks.decoder import Decoder
from bundle.networks.encoders import Encoder
from bundle.sparse import CellLayout, SparseVolume

__all__ = ["PretrainingNetwork", "PretrainingOutput"]


class PretrainingOutput(TypedDict):
    """What the network returns.

    Attributes:
        reconstruction: ``[B, C, D, H, W]`` in the units of the normalised target.
        visible: bool ``[B, 1, d, h, w]`` on cells.
        hidden: bool ``[B, 1, d, h, w]`` on cells: the part to be reconstructed.
        pairs: features to be aligned, one entry per two adjacent depths; empty without alignment heads.
        terms: the loss writes its terms here, detached scalars, for whoever logs them.
    """

    reconstruction: Tensor
    visible: Tensor
    hidden: Tensor
    pairs: list[Pairs]
    terms: dict[str, Tensor]


class PretrainingNetwork(nn.Module):
    """Encodes what is visible, fills the holes, reconstructs the whole (SparK, arXiv:2301.03580).

    Everything with parameters lives here, so that optimizer, DistributedDataParallel and checkpoint see it.

    Args:
        encoder: a MONAI network behind the `Encoder` contract.
        decoder: from the encoder's features to voxels.
        alignment: heads for cross-level alignment, or None.
        executor: how the encoder runs sparsely, one of `SparseVolume.known_executors()`.
        recompute_levels: of so many of the encoder's finest levels keep nothing but the features for the backward pass
            and compute the rest again: about a third more time for the encoder, far less memory.
        autocast: data type of automatic mixed precision in the forward pass, or None for full precision. bfloat16
            needs no gradient scaler, so the trainer's own `amp` stays off.
    """

    def __init__(
        self,
        *,
        encoder: Encoder,
        decoder: Decoder,
        alignment: DepthAlignmentHeads | None = None,
        executor: str = "cells",
        recompute_levels: int = 0,
        autocast: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        SparseVolume.executor_class(executor)  # a wrong name or a missing library shows now, not in the first step
        self.encoder, self.decoder, self.alignment = encoder, decoder, alignment
        self.executor, self.recompute_levels, self.autocast = executor, recompute_levels, autocast
        # the order in which sparse convolution reads weights
        self.encoder.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]  # missing in torch's stub

    def forward(self, image: Tensor, *, visible: Tensor, hidden: Tensor, spacing: Tensor) -> PretrainingOutput:
        """One masked pass.

        Args:
            image: ``[B, C, D, H, W]``; voxels outside visible cells are never read.
            visible: bool ``[B, 1, d, h, w]`` on cells.
            hidden: bool ``[B, 1, d, h, w]`` on cells, passed on to the loss.
            spacing: ``[B, 3]``, voxel size in mm.
        """
        with torch.autocast(image.device.type, dtype=self.autocast, enabled=self.autocast is not None):
            volume = SparseVolume.from_dense(image, CellLayout(visible), self.executor)
            features = self.encoder(volume, self.recompute_levels)
            reconstruction = self.decoder(features)
            pairs = [] if self.alignment is None else self.alignment(features, spacing)
        return {
            "reconstruction": reconstruction.to(image.dtype),
            "visible": visible,
            "hidden": hidden,
            "pairs": pairs,
            "terms": {},
        }

    def encoder_state_dict(self) -> dict[str, Tensor]:
        """The product: the encoder half's weights under the MONAI network's own keys, on the CPU."""
        return {
            key: value.detach().cpu().clone(memory_format=torch.contiguous_format)
            for key, value in self.encoder.network_state_dict().items()
        }
