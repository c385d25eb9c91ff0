# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""Pairs across volume levels: the same place in mm on both sides."""

from __future__ import annotations

import pytest
import torch

from bundle.errors import UserError
from bundle.networks import Level, View, VolumeLevelPairs
from bundle.networks.level_pairs import sample_at
from bundle.sparse import CellLayout, SparseVolume

LEVEL = Level(3, (4, 4, 2))


class Same(torch.nn.Module):
    """A teacher's heads that project nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.project = torch.nn.Identity()


def where_it_is(origin: torch.Tensor, spacing: torch.Tensor, grid: tuple[int, int, int]) -> torch.Tensor:
    """Features [B, 3, d, h, w] that are each site's own place in mm."""
    sites = torch.stack(torch.meshgrid(*[torch.arange(g) + 0.5 for g in grid], indexing="ij"))  # [3, d, h, w]
    scale = (torch.tensor(LEVEL.stride) * spacing)[:, :, None, None, None]
    return origin[:, :, None, None, None] + sites * scale


def views(extents=((32, 32, 16), (8, 8, 8), (40, 24, 12))) -> list[View]:
    """Crops of 64 x 64 x 32 voxels and three children, with anisotropic spacing; features are places in mm."""
    spacing = torch.tensor([[1.0, 0.5, 3.0], [2.0, 1.0, 1.0]])
    grid, size = (16, 16, 16), (16, 16, 8)
    zero = torch.zeros(2, 3)
    layout = CellLayout(torch.ones(2, 1, *grid, dtype=torch.bool))
    full = [SparseVolume.from_dense(where_it_is(zero, spacing, grid), layout)]
    crops = View(full, full, spacing, torch.arange(2), zero)
    parent, extent = torch.tensor([0, 1, 1]), torch.tensor(extents)
    own = spacing[parent] * extent / torch.tensor(size)
    origin = torch.tensor([[4, 7, 3], [30, 0, 8], [9, 20, 11]]) * spacing[parent]
    seen = torch.rand(3, 1, 4, 4, 4, generator=torch.Generator().manual_seed(0)) > 0.3
    features = SparseVolume.from_dense(where_it_is(origin, own, (4, 4, 4)), CellLayout(seen))
    return [crops, View([features], None, own, parent, origin, parent)]


def test_query_and_key_show_the_same_place_in_mm():
    pairs = VolumeLevelPairs(levels=[LEVEL], dim=3, head="linear", predictor=False, samples=1000)
    with torch.no_grad():
        pairs.project.weight.copy_(torch.eye(3))
    all_views = views()
    (pair,) = pairs(all_views, Same())
    assert len(pair.query) == len(all_views[1].features[0].layout)
    torch.testing.assert_close(pair.query, pair.position)
    # interpolation repeats the outermost sites: half a site further out is the border
    spacing, stride = all_views[0].spacing[pair.volume], torch.tensor(LEVEL.stride)
    inside = ((pair.position > spacing * stride / 2) & (pair.position < spacing * stride * 15.5)).all(1)
    assert inside.sum() > 30
    torch.testing.assert_close(pair.key[inside], pair.position[inside])
    assert not pair.key.requires_grad


def test_interpolation_leaves_absent_sites_out():
    visible = torch.tensor([True, False]).view(1, 1, 2, 1, 1)
    image = torch.tensor([1.0, 50.0]).view(1, 1, 2, 1, 1)
    features = SparseVolume.from_dense(image, visible)
    at = torch.tensor([[0.0, 0, 0], [0.4, 0, 0], [0.9, 0, 0]])
    assert sample_at(features, torch.zeros(3, dtype=torch.long), at).flatten().tolist() == [1.0, 1.0, 1.0]


def test_interpolation_is_trilinear():
    features = torch.randn(1, 2, 3, 4, 5)
    volume = SparseVolume.from_dense(features, torch.ones(1, 1, 3, 4, 5, dtype=torch.bool))
    place = torch.rand(20, 3) * torch.tensor([2.0, 3.0, 4.0])
    grid = place.flip(1) / torch.tensor([4.0, 3.0, 2.0]) * 2 - 1
    expected = torch.nn.functional.grid_sample(features, grid.view(1, 20, 1, 1, 3), align_corners=True)
    torch.testing.assert_close(sample_at(volume, torch.zeros(20, dtype=torch.long), place), expected[0, :, :, 0, 0].T)


def test_without_children_or_teacher_it_says_what_is_missing():
    pairs = VolumeLevelPairs(levels=[LEVEL])
    crops, children = views()
    with pytest.raises(UserError, match="needs children"):
        pairs([crops], Same())
    assert pairs.eval()([crops], Same()) == []
    with pytest.raises(UserError, match="teacher_momentum"):
        pairs([crops, children])
    with pytest.raises(UserError, match="depth 3"):
        VolumeLevelPairs(levels=[LEVEL], depth=3)
