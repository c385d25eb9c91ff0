# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
from __future__ import annotations

import torch

from bundle.masking import AdaptiveBlocks, MaskSampler
from bundle.masking.sampler import valid_cells

SAMPLER = MaskSampler(rule=AdaptiveBlocks(), cell=(4, 4, 2), seed=7)


def test_masks_depend_on_the_draw_only_not_on_the_batch():
    valid = torch.ones(3, 1, 16, 16, 8, dtype=torch.bool)
    together = SAMPLER(valid, torch.tensor([5, 6, 7]))
    alone = SAMPLER(valid[:1], torch.tensor([6]))
    assert torch.equal(together.hidden[1], alone.hidden[0]) and torch.equal(together.visible[1], alone.visible[0])


def test_draws_differ_and_so_do_seeds():
    valid = torch.ones(8, 1, 32, 32, 16, dtype=torch.bool)
    masks = SAMPLER(valid, torch.arange(8)).hidden
    assert len(masks.flatten(1).unique(dim=0)) == 8
    other = MaskSampler(rule=AdaptiveBlocks(), cell=(4, 4, 2), seed=8)(valid, torch.arange(8)).hidden
    assert not torch.equal(masks, other)


def test_visible_and_hidden_share_out_the_valid_cells():
    valid = torch.ones(1, 1, 16, 16, 8, dtype=torch.bool)
    valid[..., 12:, :, :] = False
    mask = SAMPLER(valid, torch.tensor([0]))
    assert not (mask.visible & mask.hidden).any()
    assert torch.equal(mask.visible | mask.hidden, valid[..., ::4, ::4, ::2])


def test_a_mostly_padded_cell_is_not_valid():
    valid = torch.zeros(1, 1, 12, 4, 4, dtype=torch.bool)
    valid[:, :, 2:9] = True  # 2, 4 and 1 of 4 slices
    assert valid_cells(valid, (4, 4, 4)).flatten().tolist() == [True, True, False]


def test_a_volume_thinner_than_half_a_cell_still_has_cells():
    valid = torch.zeros(1, 1, 16, 16, 16, dtype=torch.bool)
    valid[..., :3] = True
    assert valid_cells(valid, (8, 8, 8)).flatten().tolist() == [True, False] * 4
