# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""The batch and masks that the tests of rules share."""

from __future__ import annotations

import torch

from bundle.sparse import SparseVolume
from tests.sparse.oracle import site_mask

EXECUTORS = sorted(SparseVolume.executors)
CELL_SHAPE = (4, 2, 4)


def example(seed: int = 0, channels: int = 4) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    visible = torch.rand(2, 1, 2, 3, 2, generator=generator) > 0.5
    visible[0, 0, 0, 0, 0] = visible[1, 0, 1, 2, 1] = True
    return torch.randn(2, channels, 8, 6, 8, dtype=torch.float64, generator=generator), visible


def run(layer, image: torch.Tensor, visible: torch.Tensor, executor: str) -> torch.Tensor:
    return layer(SparseVolume.from_dense(image, visible, executor)).to_dense()


def visible_rows(x: torch.Tensor, visible: torch.Tensor, sample: int | None = None) -> torch.Tensor:
    mask = site_mask(visible, CELL_SHAPE)
    if sample is not None:
        mask[torch.arange(len(mask)) != sample] = False
    return x.permute(0, 2, 3, 4, 1)[mask]  # [M, C]
