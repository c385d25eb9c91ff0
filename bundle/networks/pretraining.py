# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""The pre-training network: sparse encoder, densify, decoder and the objectives' heads in one module."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any, TypedDict

import torch
from torch import Tensor, nn

from bundle.cells import send
from bundle.errors import UserError
from bundle.networks.batch_norm import reestimate_batch_norm
from bundle.networks.decoder import Decoder
from bundle.networks.depth_pairs import EncoderDepthPairs
from bundle.networks.encoders import Encoder
from bundle.networks.level_pairs import VolumeLevelPairs
from bundle.networks.nnunet_decoder import NnunetDecoder
from bundle.networks.objective import Objective
from bundle.networks.pairs import Children, View
from bundle.networks.segres_decoder import SegResDecoder
from bundle.networks.teacher import Teacher
from bundle.sparse import CellLayout, SparseVolume

__all__ = ["PretrainingNetwork", "PretrainingOutput"]

#: names that the network or its teacher has for something else
_TAKEN = {"reconstruction", "heads"}


class PretrainingOutput(TypedDict):
    """What the network returns.

    Attributes:
        reconstruction: ``[B, C, D, H, W]`` of the crops, in the units of the normalised target.
        visible: bool ``[B, 1, d, h, w]`` on cells.
        hidden: bool ``[B, 1, d, h, w]`` on cells: the part to be reconstructed.
        made: what the heads of each objective made, by its name. "reconstruction" is a list, the crops' first, then the
            children's ``[N, C, D, H, W]`` level by level; "alignment" is a list of `Pairs`. Names of heads that made
            nothing are absent.
        terms: the loss writes its terms here, detached scalars, for whoever logs them.
    """

    reconstruction: Tensor
    visible: Tensor
    hidden: Tensor
    made: dict[str, Any]
    terms: dict[str, Tensor]


class PretrainingNetwork(nn.Module):
    """Encodes what is visible, fills the holes, reconstructs the whole (SparK, arXiv:2301.03580).

    Everything with parameters lives here, so that optimizer, DistributedDataParallel and checkpoint see it.

    Args:
        encoder: a MONAI network behind the `Encoder` contract.
        decoder: from the encoder's features to voxels; the heads of the objective "reconstruction".
        alignment: draws pairs of features to be aligned, or None; the heads of the objective "alignment".
        objectives: further pretext tasks by name; their heads become submodules of that name. None is left out.
        teacher_momentum: of a teacher, the moving average of the encoder and of the heads that use it, which sees the
            whole volume; None has no teacher. It has a decoder, too, where an objective needs one.
        sparse: False encodes the crop densely with its hidden voxels set to zero: a plain masked autoencoder, for
            comparison. The same network, masks and losses.
        executor: how the encoder runs sparsely, one of `SparseVolume.known_executors()`.
        recompute_levels: of so many of the encoder's finest levels keep nothing but the features for the backward pass
            and compute the rest again: about a third more time for the encoder, far less memory.
        compile_decoder: compiles the decoder's blocks with `torch.compile`.
        autocast: data type of automatic mixed precision in the forward pass, or None for full precision. bfloat16
            needs no gradient scaler, so the trainer's own `amp` stays off.

    Raises:
        UserError: for an unknown executor, a name of an objective that is taken, an objective that needs a teacher
            where there is none, or a teacher that no heads use.

    Examples:
        >>> import torch
        >>> from bundle.networks import Decoder, build_encoder
        >>> encoder = build_encoder("SegResEncoder", init_filters=4, blocks_down=(1, 1, 1))
        >>> network = PretrainingNetwork(encoder=encoder, decoder=Decoder(levels=encoder.levels, width=8))
        >>> visible = torch.rand(2, 1, 4, 4, 4) > 0.6  # on cells of the encoder's total stride, here 4 voxels
        >>> image, spacing = torch.randn(2, 1, 16, 16, 16), torch.ones(2, 3)
        >>> output = network(image, visible=visible, hidden=~visible, spacing=spacing)
        >>> output["reconstruction"].shape
        torch.Size([2, 1, 16, 16, 16])
        >>> sorted(output["made"])
        ['reconstruction']
    """

    def __init__(
        self,
        *,
        encoder: Encoder,
        decoder: Decoder | SegResDecoder | NnunetDecoder,
        alignment: EncoderDepthPairs | VolumeLevelPairs | None = None,
        objectives: Mapping[str, Objective | None] | None = None,
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
        self._further = {name: one for name, one in (objectives or {}).items() if one is not None}
        for name, objective in self._further.items():
            if not name.isidentifier() or name in _TAKEN or hasattr(self, name):
                raise UserError(f"objectives#{name}: an objective cannot have this name: choose another one")
            if objective.needs_whole and teacher_momentum is None:
                raise UserError(
                    f"objectives#{name} needs a teacher, which sees the whole crop: set network_def#teacher_momentum, "
                    "such as 0.995"
                )
            self.add_module(name, nn.Identity() if objective.heads is None else objective.heads)
        if teacher_momentum is not None:
            taught = self._taught_heads()
            if not taught:
                raise UserError(
                    "network_def#teacher_momentum is set, but neither alignment heads nor an objective needs a "
                    "teacher: set it to null, or network_def#alignment"
                )
            self.teacher = Teacher(encoder, taught, teacher_momentum, decoder if self._teacher_decodes else None)
        elif isinstance(alignment, EncoderDepthPairs):
            alignment.predict[-1].requires_grad_(False)  # the coarsest depth is a query only against a teacher

    @property
    def _teacher_decodes(self) -> bool:
        return any(objective.needs_whole and objective.needs_decoded for objective in self._further.values())

    def forward(
        self,
        image: Tensor,
        *,
        visible: Tensor,
        hidden: Tensor,
        spacing: Tensor,
        children: Sequence[Children] = (),
        teacher_image: Tensor | None = None,
    ) -> PretrainingOutput:
        """One masked pass over the crops, and one over each level of children.

        Args:
            image: ``[B, C, D, H, W]``; voxels outside visible cells are never read, but by a teacher.
            visible: bool ``[B, 1, d, h, w]`` on cells; on the CPU, where masks are drawn, or beside the image. If it
                lies on a GPU, the host waits for it.
            hidden: bool ``[B, 1, d, h, w]`` on cells, passed on to the loss.
            spacing: ``[B, 3]``, voxel size in mm.
            children: levels of volumes cut from the hidden part.
            teacher_image: the same crops as the teacher sees them, where that is another image.
        """
        with torch.autocast(image.device.type, dtype=self.autocast, enabled=self.autocast is not None):
            views = self._encode_all(image, visible, hidden, spacing, children)
            reconstructions = []
            for view in views:
                if any(objective.needs_decoded for objective in self._further.values()):
                    view.decodings = self.decoder.decode_each(view.features)
                view.decoded = view.decodings[0] if view.decodings else self.decoder.decode(view.features)
                reconstructions.append(self.decoder.reconstruct(view.decoded).to(image.dtype))
            if self.teacher is not None:
                whole = image if teacher_image is None else teacher_image
                seen = [(whole, visible, hidden), *((level.image, level.visible, level.hidden) for level in children)]
                self._show_whole(self.teacher, views, seen)
            made = {"reconstruction": reconstructions, **self._call_heads(views)}
        visible, hidden = (send(mask, image.device) for mask in (visible, hidden))
        return {"reconstruction": reconstructions[0], "visible": visible, "hidden": hidden, "made": made, "terms": {}}

    def _encode_all(
        self, image: Tensor, visible: Tensor, hidden: Tensor, spacing: Tensor, children: Sequence[Children]
    ) -> list[View]:
        """The crops as a view, then the children level by level."""
        # all of them before the GPU has work: the host waits for a mask that lies there
        crops, *layouts = (
            self._lay_out(*masks, image.device)
            for masks in [(visible, hidden), *((level.visible, level.hidden) for level in children)]
        )
        sample = torch.arange(len(image), device=image.device)
        views = [View(self._encode(image, visible, crops), None, spacing, sample, torch.zeros_like(spacing))]
        for level, layout in zip(children, layouts, strict=True):
            above = views[-1]
            views.append(
                View(
                    features=self._encode(level.image, level.visible, layout),
                    full=None,
                    spacing=level.spacing,
                    volume=above.volume[level.parent],
                    origin=above.origin[level.parent] + level.corner * above.spacing[level.parent],
                    parent=level.parent,
                )
            )
        return views

    def _lay_out(self, visible: Tensor, hidden: Tensor, device: torch.device) -> CellLayout:
        return CellLayout(visible if self.sparse else visible | hidden, device)

    def _encode(self, image: Tensor, visible: Tensor, layout: CellLayout) -> list[SparseVolume]:
        if not self.sparse:
            image = SparseVolume.from_dense(image, visible, "masked").to_dense()
        return self.encoder(SparseVolume.from_dense(image, layout, self.executor), self.recompute_levels)

    def _show_whole(
        self, teacher: Teacher, views: Sequence[View], seen: Sequence[tuple[Tensor, Tensor, Tensor]]
    ) -> None:
        """Fills `View.full` where heads ask for it."""
        count = len(views)
        if not any(objective.needs_whole for objective in self._further.values()):
            # the alignment takes keys of all levels but the last for level pairs, of the crops for depth pairs
            count = max(1, count - 1)
        for view, (image, visible, hidden) in zip(views[:count], seen):
            view.full = teacher.encode(SparseVolume.from_dense(image, visible | hidden, self.executor))
        if self._teacher_decodes:
            views[0].full_decodings = teacher.decode_each(views[0].full or ())

    def _call_heads(self, views: list[View]) -> dict[str, Any]:
        """What the heads beside the decoder make of the views, by the names of their objectives."""
        averaged = {} if self.teacher is None else self.teacher.heads
        made = {}
        for name in ("alignment", *self._further):
            heads = getattr(self, name)
            if heads is None:
                continue
            found = heads(views, averaged[name]) if name in averaged else heads(views)
            if found is not None and not (isinstance(found, list) and not found):
                made[name] = found
        return made

    def _taught_heads(self) -> dict[str, nn.Module]:
        """The heads that are called with a teacher, if there is one, by the names of their objectives."""
        names = [name for name, objective in self._further.items() if objective.needs_whole]
        heads = {} if self.alignment is None else {"alignment": self.alignment}
        return {**heads, **{name: getattr(self, name) for name in names}}

    def update_teacher(self) -> None:
        """Moves the teacher, if there is one, towards the encoder: to be called after every step of the optimizer."""
        if self.teacher is not None:
            self.teacher.update(self.encoder, self._taught_heads(), self.decoder)

    def restart_teacher(self) -> None:
        """Makes the teacher, if there is one, a copy of the encoder and heads as they are now."""
        if self.teacher is not None:
            self.teacher.restart(self.encoder, self._taught_heads(), self.decoder)

    def products(self, images: Sequence[Tensor] = ()) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """The weights to go on with, on the CPU: those of the encoder, and those of the decoder.

        The encoder half's are under the MONAI network's own keys. So are the decoder's, where it is part of such a
        network; else there are none. Its mask tokens are among them, so that both together can reconstruct.

        Args:
            images: batches of whole, unmasked crops ``[B, C, D, H, W]`` on the encoder's device. With them BatchNorm's
                statistics are those of whole crops, and every level's features have unit scale (`encoders/scale.py`).
                The decoder's weights fit that.
        """
        encoder = self._encoder_for(images)
        factors = encoder.unit_factors(images) if images else [1.0] * len(encoder.levels)
        weights = encoder.rescaled_state_dict(factors) if images else encoder.network_state_dict()
        rescaled = getattr(self.decoder, "rescaled_state_dict", None)
        return _on_cpu(weights), {} if rescaled is None else _on_cpu(rescaled(factors))

    def encoder_state_dict(self, images: Sequence[Tensor] = ()) -> dict[str, Tensor]:
        """The first of `products`."""
        return self.products(images)[0]

    def decoder_state_dict(self, images: Sequence[Tensor] = ()) -> dict[str, Tensor]:
        """The second of `products`."""
        return self.products(images)[1]

    def _encoder_for(self, images: Sequence[Tensor]) -> Encoder:
        """The encoder, or a copy whose BatchNorms have the statistics of these images."""
        if not images:
            return self.encoder
        encoder = copy.deepcopy(self.encoder)
        reestimate_batch_norm(encoder, images)
        return encoder


def _on_cpu(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    # a tensor under two names stays one tensor, so that a file holds it once
    where = {key: (w.data_ptr(), w.shape) for key, w in weights.items()}
    copies = {where[key]: w.detach().cpu().clone(memory_format=torch.contiguous_format) for key, w in weights.items()}
    return {key: copies[where[key]] for key in weights}
