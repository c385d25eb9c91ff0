# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bundle.errors import UserError
from bundle.masking import AdaptiveBlocks
from bundle.masking.rules import block_numbers


def hidden_cells(grid: tuple[int, ...], seed: int = 0, **options) -> torch.Tensor:
    return AdaptiveBlocks(**options)(torch.ones(grid, dtype=torch.bool), torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("grid", "visible"), [(2, 8), (4, 64)])
def test_a_batch_of_two_has_the_designs_number_of_visible_cells(grid: int, visible: int):
    assert sum((~hidden_cells((grid,) * 3, seed)).sum() for seed in range(2)) == visible


def test_on_a_grid_of_eight_about_41_percent_stay_visible():
    share = [(~hidden_cells((8, 8, 8), seed)).float().mean().item() for seed in range(200)]
    # 11 of 27 blocks stay; blocks are 3 or, at the far end, 2 cells wide, so the share varies about 11 / 27
    assert 0.40 < sum(share) / len(share) < 0.415 and min(share) > 0.25 and max(share) < 0.55


@pytest.mark.parametrize(("side", "size"), [(1, 1), (2, 1), (3, 2), (4, 2), (5, 3), (8, 3), (9, 4), (20, 4)])
def test_block_size_follows_the_smallest_side(side: int, size: int):
    assert AdaptiveBlocks().block_size((side, 32, 20)) == (size,) * 3


@pytest.mark.parametrize(
    ("blocks", "options", "expected"),
    [
        (8, {}, 4),  # int(4.8)
        (27, {}, 16),
        (2, {}, 1),  # max(1, 2 - min_unmasked)
        (3, {}, 1),
        (8, {"ratio": 0.99}, 6),  # n - min_unmasked
        (8, {"ratio": 0.01}, 1),
        (8, {"ratio": 0.01, "min_masked": 3}, 3),
        (8, {"ratio": 0.99, "min_unmasked": 1}, 7),
    ],
)
def test_number_of_hidden_blocks(blocks: int, options: dict, expected: int):
    assert AdaptiveBlocks(**options).hidden_count(blocks) == expected


def test_whole_blocks_are_hidden():
    hidden, numbers = hidden_cells((6, 7, 8)), block_numbers((6, 7, 8), (3, 3, 3))
    for block in numbers.unique():
        assert len(hidden[numbers == block].unique()) == 1


@settings(max_examples=60, deadline=None)
@given(st.tuples(*[st.integers(1, 9)] * 3), st.floats(0.05, 0.95), st.integers(0, 2**31))
def test_something_is_always_hidden_and_something_visible(grid, ratio, seed):
    generator = torch.Generator().manual_seed(seed)
    valid = torch.rand(grid, generator=generator) < 0.7
    if valid.sum() < 2:
        with pytest.raises(UserError, match="cannot mask a grid"):
            AdaptiveBlocks(ratio=ratio)(valid, generator)
        return
    hidden = AdaptiveBlocks(ratio=ratio)(valid, generator)
    assert hidden.any() and (valid & ~hidden).any() and not (hidden & ~valid).any()


def test_a_small_volume_in_a_large_crop_gets_finer_blocks():
    valid = torch.zeros(8, 8, 8, dtype=torch.bool)
    valid[0, 0, :2] = True  # both cells lie in one 3-cell block
    hidden = AdaptiveBlocks()(valid, torch.Generator())
    assert hidden.sum() == 1


@pytest.mark.parametrize("ratio", [0.0, 1.0, -0.5, 60])
def test_an_impossible_ratio_names_the_option(ratio: float):
    with pytest.raises(UserError, match="--mask_ratio"):
        AdaptiveBlocks(ratio=ratio)
