# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""Windows begin at whole cells, so that sliding changes nothing for a network that sees one cell at a time."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from monai.inferers import SlidingWindowInferer

from bundle.errors import UserError
from bundle.inference import whole_cell_overlap


@pytest.mark.parametrize("window", [(48, 32, 16), (96, 64, 32), (112, 80, 48)])
@pytest.mark.parametrize("overlap", [0, 0.1, 0.25, 0.5, 0.7])
def test_features_stay_in_their_cells(window: tuple[int, int, int], overlap: float):
    cell = (16, 8, 16)
    image = torch.randn(1, 1, 112, 88, 64)
    inferer = SlidingWindowInferer(window, overlap=whole_cell_overlap(overlap, window, cell), mode="gaussian")
    features = inferer(image, lambda x: F.avg_pool3d(x, cell).repeat(1, 3, 1, 1, 1))
    torch.testing.assert_close(features, F.avg_pool3d(image, cell).expand(-1, 3, -1, -1, -1))


def test_the_overlap_is_at_least_the_one_asked_for():
    # 96 voxels in cells of 16: a quarter would be a step of 72, four cells are 64
    given = whole_cell_overlap(0.25, (96, 96, 64), (16, 16, 16))
    assert [int(size * (1 - o)) for size, o in zip((96, 96, 64), given)] == [64, 64, 48]


@pytest.mark.parametrize("overlap", [-0.1, 1, 50])
def test_an_overlap_that_is_no_share_is_refused(overlap: float):
    with pytest.raises(UserError, match="--overlap"):
        whole_cell_overlap(overlap, (32, 32, 32), (16, 16, 16))
