# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""From a batch of crops to what network and loss are called with: masks are drawn and children cut here."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from bundle.masking.levels import MaskInMask
from bundle.masking.wide_field import DRAWN, unpack_levels

__all__ = ["MaskedBatch"]


class MaskedBatch:
    """`prepare_batch` of MONAI's trainer and evaluator for masked reconstruction.

    Args:
        masking: draws masks and cuts children, on the CPU, from the number of each sample's draw.
        teacher_keys: of the image that a teacher sees: the first one that the batch has, else `image`.
    """

    def __init__(self, masking: MaskInMask, teacher_keys: Sequence[str] = ()) -> None:
        self.masking, self.teacher_keys = masking, tuple(teacher_keys)

    def __call__(
        self, batch: dict[str, Any], device: torch.device | str | None = None, non_blocking: bool = False, **to: Any
    ) -> tuple[Tensor, dict[str, Any], tuple[()], dict[str, Any]]:
        """Moves a batch to `device` and masks it, unless `WideField` has done so in the loader.

        Args:
            batch: `image` float ``[B, 1, D, H, W]``, bool `valid` and `foreground` alike, int64 ``[B]`` `draw` and
                `volume`, `spacing` ``[B, 3]`` in mm.
            device: where network and loss run.
            non_blocking: copy while computing, for pinned memory.
            to: further arguments of `torch.Tensor.to`.

        Returns:
            The network's input, the loss's target, no positional and four keyword arguments of the network. Of these
            `visible` and `hidden` stay on the CPU: there the network counts cells without waiting for a GPU.

        Raises:
            UserError: if the batch has no map of weights though the masking asks for one.
        """
        if DRAWN in batch:  # by the loader, from what it has not handed on
            batch, mask, levels = unpack_levels(batch, self.masking)
        else:
            wanted = {key: batch[key] for key in ("image", "valid", "foreground", "draw", "spacing")}
            mask, levels = self.masking(**wanted, weight=self.masking.find_weight(batch), clean=batch.get("clean"))
        tensors = {key: value for key, value in batch.items() if isinstance(value, Tensor)}
        options = {"device": device, "non_blocking": non_blocking, **to}
        moved: dict[str, Any] = {k: v.to(**options) for k, v in tensors.items()}
        moved["children"] = [level.to(**options) for level in levels]
        further = {"spacing": moved["spacing"], "children": moved["children"]}
        for key in [key for key in self.teacher_keys if key in moved][:1]:
            further["teacher_image"] = moved[key]
        return moved["image"], moved, (), {**mask._asdict(), **further}
