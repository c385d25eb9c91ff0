# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
from __future__ import annotations

from pathlib import Path

import pytest
import torch
from monai.bundle import ConfigParser

from bundle.cells import valid_cells
from bundle.errors import UserError
from bundle.masking import AdaptiveBlocks, MaskSampler, PhysicalBlocks, UniformCells

ROOT = Path(__file__).parents[2]
SAMPLER = MaskSampler(rule=AdaptiveBlocks(), cell=(4, 4, 2), seed=7)


def test_masks_depend_on_the_draw_only_not_on_the_batch():
    valid = torch.ones(3, 1, 16, 16, 8, dtype=torch.bool)
    together = SAMPLER(valid, torch.tensor([5, 6, 7]))
    alone = SAMPLER(valid[:1], torch.tensor([6]))
    assert torch.equal(together.hidden[1], alone.hidden[0]) and torch.equal(together.visible[1], alone.visible[0])


@pytest.mark.parametrize("ratio", [0.6, [0.5, 0.9]])
def test_the_share_that_is_recorded_is_the_rules(ratio: float | list[float]):
    assert MaskSampler(rule=UniformCells(ratio=ratio), cell=(4, 4, 4)).mask_ratio == ratio
    parser = ConfigParser(ConfigParser.load_config_file(ROOT / "configs/train.yaml"))
    parser["masking#rule"] = {"_target_": "bundle.masking.UniformCells", "ratio": ratio}
    parser["masking#cell"] = [4, 4, 4]
    assert parser.get_parsed_content("model_settings#mask_ratio") == ratio


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


def test_fixed_ratio_masks_do_not_depend_on_spacing_and_physical_ones_do():
    valid = torch.ones(1, 1, 32, 32, 16, dtype=torch.bool)
    draw, isotropic, thick = torch.tensor([3]), torch.ones(1, 3), torch.tensor([[1.0, 1.0, 8.0]])
    assert torch.equal(SAMPLER(valid, draw, isotropic).hidden, SAMPLER(valid, draw, thick).hidden)
    physical = MaskSampler(rule=PhysicalBlocks(block_mm=16), cell=(4, 4, 2), seed=7)
    assert not torch.equal(physical(valid, draw, isotropic).hidden, physical(valid, draw, thick).hidden)


def test_a_weight_map_on_voxels_draws_the_mask_to_itself():
    valid = torch.ones(64, 1, 16, 16, 8, dtype=torch.bool)
    weight = torch.zeros(64, 1, 16, 16, 8)
    weight[:, :, :8] = 3.0
    sampler = MaskSampler(rule=UniformCells(ratio=0.4), cell=(4, 4, 2), weight_floor=0.1)
    hidden = sampler(valid, torch.arange(64), weight=weight).hidden.float()
    assert hidden[:, :, :2].mean() > 3 * hidden[:, :, 2:].mean() > 0
    only = MaskSampler(rule=UniformCells(ratio=0.4), cell=(4, 4, 2), weight_floor=0)
    assert not only(valid, torch.arange(64), weight=weight).hidden[:, :, 2:].any()


def test_wrong_weights_are_refused():
    valid = torch.ones(1, 1, 16, 16, 8, dtype=torch.bool)
    with pytest.raises(UserError, match="weight map"):
        SAMPLER(valid, torch.tensor([0]), weight=-torch.ones(1, 1, 16, 16, 8))
    with pytest.raises(UserError, match="weight_floor"):
        MaskSampler(rule=AdaptiveBlocks(), cell=(4, 4, 4), weight_floor=-1)


@pytest.mark.parametrize(("first", "end", "cells"), [(3, 9, 27), (4, 8, 64)], ids=["beyond a cell", "within a cell"])
def test_a_small_volume_of_which_a_crop_holds_one_cell_ends_no_run(first: int, end: int, cells: int):
    valid = torch.zeros(2, 1, 16, 16, 16, dtype=torch.bool)
    valid[0, :, first:end, first:end, first:end] = True
    valid[1] = True
    sampler = MaskSampler(rule=UniformCells(ratio=0.5), cell=(4, 4, 4), seed=7)
    mask = sampler(valid, torch.tensor([0, 1]))
    assert (mask.visible | mask.hidden).flatten(1).sum(1).tolist() == [cells, 64]
    assert mask.visible[0].any() and mask.hidden[0].any()
    assert torch.equal(mask.hidden[1], sampler(valid[1:], torch.tensor([1])).hidden[0]), "the others are as before"
