# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
from __future__ import annotations

import pytest
import torch

from bundle.masking import AdaptiveBlocks, MaskSampler, UniformCells
from bundle.reconstruction import draw_window_masks

SPACING = torch.ones(3)


def sampler(rule=AdaptiveBlocks) -> MaskSampler:
    return MaskSampler(rule=rule(ratio=0.6), cell=(4, 4, 4))


@pytest.fixture
def valid() -> torch.Tensor:
    """8^3 cells of which a slab is padding."""
    valid = torch.ones(1, 32, 32, 32, dtype=torch.bool)
    valid[..., 28:] = False
    return valid


def test_a_single_mask_hides_the_rules_share_of_what_has_data(valid):
    masks = draw_window_masks(sampler(UniformCells), valid, SPACING, window=0)
    assert masks.hidden.shape == (1, 1, 8, 8, 8)
    assert int(masks.hidden.sum()) == round(0.6 * 8 * 8 * 7)
    assert torch.equal(masks.visible ^ masks.hidden, valid[:, None, ::4, ::4, ::4])
    assert torch.equal(masks.wanted, masks.hidden)


@pytest.mark.parametrize("rule", [AdaptiveBlocks, UniformCells])
def test_complementary_masks_want_every_cell_once_and_all_hide_the_same_share(valid, rule):
    masks = draw_window_masks(sampler(rule), valid, SPACING, window=0, complementary=True)
    assert torch.equal(masks.wanted.sum(0), valid[:, ::4, ::4, ::4].long())
    assert not (masks.wanted & masks.visible).any()
    shares = masks.hidden.flatten(1).float().mean(1)
    assert len(shares) == 2 and shares.max() - shares.min() < 0.1  # 0.6 of the blocks, twice, is enough
    assert masks.visible.flatten(1).any(1).all()


def test_masks_depend_on_window_and_seed_alone(valid):
    def hidden(**given) -> torch.Tensor:
        return draw_window_masks(sampler(), valid, SPACING, **given).hidden

    torch.manual_seed(0)
    first = hidden(window=1)
    torch.manual_seed(1)
    assert torch.equal(first, hidden(window=1))
    assert not torch.equal(first, hidden(window=2))
    assert not torch.equal(first, hidden(window=1, seed=1))
