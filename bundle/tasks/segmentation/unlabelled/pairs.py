# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""A crop of a labelled scan with one of an unlabelled scan, and the box that they will exchange."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from bundle.data import CropDataset
from bundle.errors import UserError

__all__ = ["PairedCrops"]

#: random stream of one seed; bundle/data has those from 0 to 5
_BOX_STREAM = 6


class PairedCrops(Dataset[dict[str, Any]]):
    """Crops of labelled volumes, each with a crop of an unlabelled one, by the number of the draw.

    Draw ``d`` has the tensors of draw ``d`` of `labelled`, and besides

    - `unlabelled`: the image of draw ``d`` of `unlabelled`, ``[C, D, H, W]``,
    - `box`: int64 ``[3, 2]``, for each axis the first voxel of a box and the one after its last.

    The box has `share` of the crop's extent on every axis, rounded down, at a place that depends on nothing but the
    seed and the draw. So a resume, and any number of processes, have the same ones.

    Args:
        labelled: crops with `image` and `label`.
        unlabelled: crops with `image`, of the same size.
        share: of the extent, above 0 and below 1. In the paper 2/3.

    Raises:
        UserError: if the share does not fit.
    """

    def __init__(self, *, labelled: CropDataset, unlabelled: CropDataset, share: float = 2 / 3) -> None:
        if not 0 < share < 1:
            raise UserError(f"--unlabelled_box {share} does not fit: give a share of the crop, such as 0.67")
        self.labelled, self.unlabelled, self.share, self.seed = labelled, unlabelled, share, labelled.seed

    def __len__(self) -> int:
        """The number of labelled volumes; draws go on for ever."""
        return len(self.labelled)

    def __getitem__(self, draw: int) -> dict[str, Any]:
        item = self.labelled[draw]
        image = self.unlabelled[draw]["image"]
        generator = np.random.default_rng((self.seed, _BOX_STREAM, draw))
        extents = [max(1, int(size * self.share)) for size in image.shape[1:]]
        starts = [int(generator.integers(size - extent + 1)) for size, extent in zip(image.shape[1:], extents)]
        box = torch.tensor([[start, start + extent] for start, extent in zip(starts, extents)])
        return {**item, "unlabelled": image, "box": box}
