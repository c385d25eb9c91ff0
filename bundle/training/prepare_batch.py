# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""From a batch of crops to what network and loss are called with: the masks are drawn here."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from bundle.masking import MaskSampler

__all__ = ["MaskedBatch"]


class MaskedBatch:
    """`prepare_batch` of MONAI's trainer and evaluator for masked reconstruction.

    Args:
        masking: draws the masks, on the CPU, from the number of each sample's draw.
    """

    def __init__(self, masking: MaskSampler) -> None:
        self.masking = masking

    def __call__(
        self, batch: dict[str, Any], device: torch.device | str | None = None, non_blocking: bool = False, **to: Any
    ) -> tuple[Tensor, dict[str, Tensor], tuple[()], dict[str, Tensor]]:
        """Moves a batch to `device` and masks it.

        Args:
            batch: `image` float ``[B, 1, D, H, W]``, bool `valid` and `foreground` alike, int64 ``[B]`` `draw` and
                `volume`, `spacing` ``[B, 3]`` in mm.
            device: where network and loss run.
            non_blocking: copy while computing, for pinned memory.
            to: further arguments of `torch.Tensor.to`.

        Returns:
            The network's input, the loss's target, no positional and three keyword arguments of the network.
        """
        mask = self.masking(batch["valid"], batch["draw"])
        tensors = {key: value for key, value in batch.items() if isinstance(value, Tensor)}
        moved = {k: v.to(device=device, non_blocking=non_blocking, **to) for k, v in (tensors | mask._asdict()).items()}
        arguments = {"visible": moved.pop("visible"), "hidden": moved.pop("hidden"), "spacing": moved["spacing"]}
        return moved["image"], moved, (), arguments
