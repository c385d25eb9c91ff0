# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
from __future__ import annotations

import pytest
import torch

from bundle.sparse import CellLayout, SparseVolume
from tests.sparse.oracle import site_mask

EXECUTORS = sorted(SparseVolume.executors)


@pytest.fixture
def batch() -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    return torch.randn(2, 3, 12, 4, 6), torch.rand(2, 1, 3, 2, 2) > 0.4


@pytest.mark.parametrize("executor", EXECUTORS)
def test_round_trip_keeps_visible_sites_and_zeroes_the_rest(executor, batch):
    image, visible = batch
    volume = SparseVolume.from_dense(image, visible, executor)
    mask = site_mask(visible, (4, 2, 3))[:, None]
    assert volume.shape == image.shape and volume.cell_shape == (4, 2, 3)
    assert torch.equal(volume.to_dense(), torch.where(mask, image, 0.0))


@pytest.mark.parametrize("executor", EXECUTORS)
def test_fill_puts_one_value_per_channel_into_every_hole(executor, batch):
    image, visible = batch
    fill = torch.tensor([1.0, 2.0, 3.0])
    dense = SparseVolume.from_dense(image, visible, executor).to_dense(fill)
    mask = site_mask(visible, (4, 2, 3))[:, None]
    assert torch.equal(dense, torch.where(mask, image, fill.view(1, 3, 1, 1, 1)))


@pytest.mark.parametrize("executor", EXECUTORS)
def test_fill_receives_the_gradient_of_every_hole(executor, batch):
    image, visible = batch
    fill = torch.zeros(3, requires_grad=True)
    SparseVolume.from_dense(image, visible, executor).to_dense(fill).sum().backward()
    assert torch.equal(fill.grad, (~site_mask(visible, (4, 2, 3))).sum().float().expand(3))


@pytest.mark.parametrize("executor", EXECUTORS)
def test_masked_nan_never_enters(executor, batch):
    image, visible = batch
    image = torch.where(site_mask(visible, (4, 2, 3))[:, None], image, torch.nan)
    assert SparseVolume.from_dense(image, visible, executor).to_dense().isfinite().all()


@pytest.mark.parametrize("executor", EXECUTORS)
def test_features_at_sites_are_the_dense_ones(executor, batch):
    image, visible = batch
    layout = CellLayout(visible)
    sites = layout.draw_sites(50, (4, 2, 3))
    b, z, y, x = sites.unbind(1)
    assert torch.equal(SparseVolume.from_dense(image, layout, executor).at(sites), image[b, :, z, y, x])


def test_a_crop_that_does_not_divide_into_cells_is_refused(batch):
    image, visible = batch
    with pytest.raises(ValueError, match="whole multiple"):
        SparseVolume.from_dense(image[:, :, :11], visible)


def test_an_unknown_executor_names_the_known_ones(batch):
    with pytest.raises(ValueError, match=r"cells.*masked"):
        SparseVolume.from_dense(*batch, executor="dense")


def test_volumes_of_different_masks_do_not_mix(batch):
    image, visible = batch
    with pytest.raises(ValueError, match="do not share mask"):
        SparseVolume.from_dense(image, visible) + SparseVolume.from_dense(image, ~visible)
