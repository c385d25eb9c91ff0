# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""The pre-training network: sparse encoder, densify, decoder and alignment heads in one module."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import TypedDict

import torch
from torch import Tensor, nn

from bundle.errors import UserError
from bundle.masking import LevelBatch
from bundle.networks.batch_norm import reestimate_batch_norm
from bundle.networks.decoder import Decoder
from bundle.networks.depth_pairs import EncoderDepthPairs
from bundle.networks.encoders import Encoder
from bundle.networks.level_pairs import VolumeLevelPairs
from bundle.networks.pairs import Pairs, View
from bundle.networks.segres_decoder import SegResDecoder
from bundle.networks.teacher import Teacher
from bundle.sparse import CellLayout, SparseVolume

__all__ = ["PretrainingNetwork", "PretrainingOutput"]


class PretrainingOutput(TypedDict):
    """What the network returns.

    Attributes:
        reconstruction: ``[B, C, D, H, W]`` in the units of the normalised target.
        visible: bool ``[B, 1, d, h, w]`` on cells.
        hidden: bool ``[B, 1, d, h, w]`` on cells: the part to be reconstructed.
        children: reconstructions ``[N, C, D, H, W]`` of the children, level by level.
        pairs: features to be aligned, one entry per two adjacent depths or levels; empty without alignment heads.
        terms: the loss writes its terms here, detached scalars, for whoever logs them.
    """

    reconstruction: Tensor
    visible: Tensor
    hidden: Tensor
    children: list[Tensor]
    pairs: list[Pairs]
    terms: dict[str, Tensor]


class PretrainingNetwork(nn.Module):
    """Encodes what is visible, fills the holes, reconstructs the whole (SparK, arXiv:2301.03580).

    Everything with parameters lives here, so that optimizer, DistributedDataParallel and checkpoint see it.

    Args:
        encoder: a MONAI network behind the `Encoder` contract.
        decoder: from the encoder's features to voxels.
        alignment: draws pairs of features to be aligned, or None.
        teacher_momentum: of a teacher, the moving average of encoder and alignment heads, that makes the keys of the
            alignment from the whole volume; None has no teacher.
        sparse: False encodes the crop densely with its hidden voxels set to zero: a plain masked autoencoder, for
            comparison. The same network, masks and losses.
        executor: how the encoder runs sparsely, one of `SparseVolume.known_executors()`.
        recompute_levels: of so many of the encoder's finest levels keep nothing but the features for the backward pass
            and compute the rest again: about a third more time for the encoder, far less memory.
        compile_decoder: compiles the decoder's blocks with `torch.compile`.
        autocast: data type of automatic mixed precision in the forward pass, or None for full precision. bfloat16
            needs no gradient scaler, so the trainer's own `amp` stays off.

    Raises:
        UserError: for an unknown executor, or a teacher without alignment heads.
    """

    def __init__(
        self,
        *,
        encoder: Encoder,
        decoder: Decoder | SegResDecoder,
        alignment: EncoderDepthPairs | VolumeLevelPairs | None = None,
        teacher_momentum: float | None = None,
        sparse: bool = True,
        executor: str = "cells",
        recompute_levels: int = 0,
        compile_decoder: bool = False,
        autocast: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        SparseVolume.executor_class(executor)  # a wrong name or a missing library shows now, not in the first step
        self.encoder, self.decoder, self.alignment, self.sparse = encoder, decoder, alignment, sparse
        self.executor, self.recompute_levels, self.autocast = executor, recompute_levels, autocast
        # the order in which sparse convolution reads weights
        self.encoder.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]  # missing in torch's stub
        if compile_decoder:
            for block in decoder.refine:
                block.compile()  # in place: the keys of the state dict stay
        self.teacher: Teacher | None = None
        if teacher_momentum is not None:
            if alignment is None:
                raise UserError(
                    "network_def#teacher_momentum is set, but there are no alignment heads to teach: set it to null, "
                    "or set network_def#alignment"
                )
            self.teacher = Teacher(encoder, alignment, teacher_momentum)
        elif isinstance(alignment, EncoderDepthPairs):
            alignment.predict[-1].requires_grad_(False)  # the coarsest depth is a query only against a teacher

    def forward(
        self, image: Tensor, *, visible: Tensor, hidden: Tensor, spacing: Tensor, children: Sequence[LevelBatch] = ()
    ) -> PretrainingOutput:
        """One masked pass over the crops, and one over each level of children.

        Args:
            image: ``[B, C, D, H, W]``; voxels outside visible cells are never read, but by a teacher.
            visible: bool ``[B, 1, d, h, w]`` on cells.
            hidden: bool ``[B, 1, d, h, w]`` on cells, passed on to the loss.
            spacing: ``[B, 3]``, voxel size in mm.
            children: levels of volumes cut from the hidden part.
        """
        with torch.autocast(image.device.type, dtype=self.autocast, enabled=self.autocast is not None):
            sample = torch.arange(len(image), device=image.device)
            view = View(self._encode(image, visible, hidden), None, spacing, sample, torch.zeros_like(spacing))
            views, seen = [view], [(image, visible, hidden)]
            for level in children:
                above = views[-1]
                views.append(
                    View(
                        features=self._encode(level.image, level.visible, level.hidden),
                        full=None,
                        spacing=level.spacing,
                        volume=above.volume[level.parent],
                        origin=above.origin[level.parent] + level.corner * above.spacing[level.parent],
                        parent=level.parent,
                    )
                )
                seen.append((level.image, level.visible, level.hidden))
            reconstructions = [self.decoder(view.features).to(image.dtype) for view in views]
            pairs = self._pairs(views, seen)
        return {
            "reconstruction": reconstructions[0],
            "visible": visible,
            "hidden": hidden,
            "children": reconstructions[1:],
            "pairs": pairs,
            "terms": {},
        }

    def _encode(self, image: Tensor, visible: Tensor, hidden: Tensor) -> list[SparseVolume]:
        layout = CellLayout(visible if self.sparse else visible | hidden)
        if not self.sparse:
            image = SparseVolume.from_dense(image, CellLayout(visible), "masked").to_dense()
        return self.encoder(SparseVolume.from_dense(image, layout, self.executor), self.recompute_levels)

    def _pairs(self, views: list[View], seen: list[tuple[Tensor, Tensor, Tensor]]) -> list[Pairs]:
        if self.alignment is None:
            return []
        if self.teacher is None:
            return self.alignment(views)
        # of the levels that keys are taken from: all but the last for level pairs, the crops for depth pairs
        for view, (image, visible, hidden) in zip(views[: max(1, len(views) - 1)], seen):
            view.full = self.teacher.encode(SparseVolume.from_dense(image, CellLayout(visible | hidden), self.executor))
        return self.alignment(views, self.teacher.heads)

    def update_teacher(self) -> None:
        """Moves the teacher, if there is one, towards the encoder: to be called after every step of the optimizer."""
        if self.teacher is not None and self.alignment is not None:
            self.teacher.update(self.encoder, self.alignment)

    def encoder_state_dict(self, images: Sequence[Tensor] = ()) -> dict[str, Tensor]:
        """The product: the encoder half's weights under the MONAI network's own keys, on the CPU.

        Args:
            images: batches of whole, unmasked crops ``[B, C, D, H, W]`` on the encoder's device. With them BatchNorm's
                statistics are those of whole crops, and every level's features have unit scale (`encoders/scale.py`).
        """
        encoder = self._encoder_for(images)
        return _on_cpu(encoder.unit_scale_state_dict(images) if images else encoder.network_state_dict())

    def decoder_state_dict(self, images: Sequence[Tensor] = ()) -> dict[str, Tensor]:
        """A by-product: the decoder's weights under a MONAI network's own keys, where it is part of one; else nothing.

        The mask tokens are among them, so that encoder and decoder together can reconstruct.

        Args:
            images: those that `encoder_state_dict` was given, so that the two fit.
        """
        if not isinstance(self.decoder, SegResDecoder):
            return {}
        factors = self._encoder_for(images).unit_factors(images) if images else [1.0] * len(self.encoder.levels)
        return _on_cpu(self.decoder.rescaled_state_dict(factors))

    def _encoder_for(self, images: Sequence[Tensor]) -> Encoder:
        """The encoder, or a copy whose BatchNorms have the statistics of these images."""
        if not images:
            return self.encoder
        encoder = copy.deepcopy(self.encoder)
        reestimate_batch_norm(encoder, images)
        return encoder


def _on_cpu(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    return {key: w.detach().cpu().clone(memory_format=torch.contiguous_format) for key, w in weights.items()}
