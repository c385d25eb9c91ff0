# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""The masks of one window: one, or so many that every cell is hidden once."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from bundle.cells import valid_cells
from bundle.masking import MaskSampler
from bundle.masking.sampler import make_generator

__all__ = ["WindowMasks", "draw_window_masks"]

#: sets these masks apart from what training draws of the same seed
_WINDOW_STREAM = 4


class WindowMasks(NamedTuple):
    """Bool ``[P, 1, d, h, w]`` each, on cells, one row per pass.

    Attributes:
        visible: to the encoder.
        hidden: from the encoder.
        wanted: what is taken from this pass: hidden here and not in an earlier pass.
    """

    visible: Tensor
    hidden: Tensor
    wanted: Tensor


def draw_window_masks(
    masking: MaskSampler, valid: Tensor, spacing: Tensor, *, window: int, seed: int = 0, complementary: bool = False
) -> WindowMasks:
    """Draws the masks of a window by the run's rule, from the seed and the window's number alone.

    Complementary ones have the rule's ratio, too: each pass hides blocks that were not hidden yet and, where these are
    fewer than it needs, others again, until all have been hidden.

    Args:
        masking: the run's.
        valid: bool ``[1, D, H, W]``, False where the volume was padded.
        spacing: ``[3]``, voxel size in mm.
        window: its number.
        seed: of the masks.
        complementary: whether every cell is to be hidden in one of the passes.

    Raises:
        UserError: if the window has data in fewer than two cells.
    """
    cells = valid_cells(valid[None], masking.cell)[0, 0]
    cell_mm = [mm * voxels for mm, voxels in zip(spacing.tolist(), masking.cell)]
    remaining = cells.clone()
    hidden: list[Tensor] = []
    wanted: list[Tensor] = []
    while not hidden or (complementary and bool(remaining.any())):
        weight = remaining.double() if hidden else None  # what weighs nothing is drawn last
        hidden.append(masking.rule(cells, make_generator(seed, _WINDOW_STREAM, window, len(hidden)), cell_mm, weight))
        wanted.append(hidden[-1] & remaining)
        remaining = remaining & ~hidden[-1]
    rows = torch.stack(hidden)[:, None]
    return WindowMasks(visible=cells & ~rows, hidden=rows, wanted=torch.stack(wanted)[:, None])
