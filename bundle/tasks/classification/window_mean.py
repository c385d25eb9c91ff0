# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""One prediction for a volume that is larger than the crop."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from monai.data.utils import dense_patch_slices
from monai.inferers import Inferer
from torch import Tensor

__all__ = ["WindowMean"]


class WindowMean(Inferer):
    """The mean of a network's output over windows that cover the volume; MONAI's sliding window is for maps only.

    Args:
        roi_size: of a window, voxels per axis.
        sw_batch_size: windows at a time.
        overlap: share of a window that the next one sees again.
    """

    def __init__(self, roi_size: Sequence[int], *, sw_batch_size: int = 2, overlap: float = 0.25) -> None:
        super().__init__()
        self.roi_size, self.sw_batch_size, self.overlap = tuple(roi_size), sw_batch_size, overlap

    def __call__(self, inputs: Tensor, network: Callable[..., Tensor], *args: Any, **kwargs: Any) -> Tensor:
        """The mean output, ``[B, C]``.

        Args:
            inputs: ``[B, 1, D, H, W]``, no smaller than a window.
            network: from windows to ``[windows, C]``.
            args: for the network.
            kwargs: for the network.
        """
        step = [max(1, int(size * (1 - self.overlap))) for size in self.roi_size]
        places = dense_patch_slices(inputs.shape[2:], self.roi_size, step)
        every = (slice(None), slice(None))  # of the batch and its channels
        total: Tensor | None = None
        for first in range(0, len(places), self.sw_batch_size):
            some = places[first : first + self.sw_batch_size]
            windows = torch.cat([inputs[every + place] for place in some])
            output = network(windows, *args, **kwargs).float().unflatten(0, (len(some), len(inputs))).sum(0)
            total = output if total is None else total + output
        assert total is not None  # there is at least one window
        return total / len(places)
