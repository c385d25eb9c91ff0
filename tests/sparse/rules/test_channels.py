# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""Joined, repeated and parted channels, on every executor."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from bundle.sparse import SparseVolume, UnsupportedOperation
from tests.sparse.examples import CELL_SHAPE, example
from tests.sparse.oracle import site_mask


def test_channels_are_joined_repeated_and_parted(executor):
    image, visible = example()
    volume = SparseVolume.from_dense(image, visible, executor)
    mask = site_mask(visible, CELL_SHAPE)[:, None]
    for got, expected in (
        (torch.cat([volume, 2 * volume], dim=1), torch.cat([image, 2 * image], dim=1)),
        (torch.cat((volume, torch.ones_like(image)), 1), torch.cat([image, torch.ones_like(image)], dim=1)),
        (volume.repeat([1, 3, 1, 1, 1]), image.repeat(1, 3, 1, 1, 1)),
        (volume.chunk(2, 1)[1], image[:, 2:]),
        (torch.split(volume, [1, 3], dim=1)[1], image[:, 1:]),
        (F.pad(volume, (0, 0, 0, 0)), image),
        (volume.data, image),
    ):
        assert torch.equal(got.to_dense(), torch.where(mask, expected, 0.0))
    assert [part.channels for part in volume.split(3, dim=1)] == [3, 1]


def test_joining_parting_or_repeating_sites_is_refused(executor):
    volume = SparseVolume.from_dense(*example(), executor)
    for operation, message in (
        (lambda: torch.cat([volume, volume], dim=2), "only along the channels"),
        (lambda: volume.chunk(2, 4), "only along the channels"),
        (lambda: volume.repeat(1, 1, 2, 1, 1), "only its channels"),
    ):
        with pytest.raises(UnsupportedOperation, match=message):
            operation()
