# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bundle.errors import UserError
from bundle.masking import AdaptiveBlocks, MaskRule, PhysicalBlocks, UniformCells
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
    assert AdaptiveBlocks(**options).hidden_count(blocks, options.get("ratio", 0.6)) == expected


def test_whole_blocks_are_hidden():
    hidden, numbers = hidden_cells((6, 7, 8)), block_numbers((6, 7, 8), (3, 3, 3))
    for block in numbers.unique():
        assert len(hidden[numbers == block].unique()) == 1


@settings(max_examples=60)
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


@pytest.mark.parametrize("ratio", [[0.9, 0.6], [0.5], [0.0, 0.5], [0.2, 0.4, 0.6]])
def test_an_impossible_range_names_the_option(ratio: list):
    with pytest.raises(UserError, match="--mask_ratio"):
        UniformCells(ratio=ratio)


@pytest.mark.parametrize("cells", [(4, 4, 4), (3, 5, 7)])
def test_uniform_hides_the_rounded_share_of_single_cells(cells: tuple[int, ...]):
    hidden = UniformCells(ratio=0.6)(torch.ones(cells, dtype=torch.bool), torch.Generator())
    assert hidden.sum() == round(0.6 * hidden.numel())


@pytest.mark.parametrize(
    ("cell_mm", "grid", "expected"),
    [
        ((16, 16, 16), (8, 8, 8), (2, 2, 2)),
        ((16, 16, 5), (8, 8, 8), (2, 2, 4)),  # 32 / 5 = 6.4 cells, but the axis must have two blocks
        ((16, 16, 5), (8, 8, 16), (2, 2, 6)),
        ((40, 16, 100), (8, 8, 8), (1, 2, 1)),
        ((16, 16, 16), (8, 8, 1), (2, 2, 1)),
    ],
)
def test_physical_blocks_are_as_wide_in_mm_on_every_axis(cell_mm, grid, expected):
    assert PhysicalBlocks(block_mm=32).block_size(grid, cell_mm) == expected


def test_physical_blocks_may_be_anisotropic_in_mm():
    assert PhysicalBlocks(block_mm=[16, 32, 64]).block_size((8, 8, 8), (16, 16, 16)) == (1, 2, 4)
    with pytest.raises(UserError, match="block_mm"):
        PhysicalBlocks(block_mm=[16, 32])


def test_a_range_of_ratios_is_drawn_from_evenly():
    rule, generator = UniformCells(ratio=[0.6, 0.9]), torch.Generator().manual_seed(0)
    valid = torch.ones(10, 10, 10, dtype=torch.bool)
    shares = torch.tensor([rule(valid, generator).float().mean().item() for _ in range(300)])
    assert shares.min() >= 0.6 and shares.max() <= 0.9
    assert abs(shares.mean() - 0.75) < 0.015 and abs(shares.std() - 0.3 / 12**0.5) < 0.01


@pytest.mark.parametrize("rule", [UniformCells(ratio=0.5), PhysicalBlocks(block_mm=2, ratio=0.5), AdaptiveBlocks()])
def test_what_weighs_more_is_hidden_more_often(rule: MaskRule):
    valid, weight = torch.ones(6, 6, 6, dtype=torch.bool), torch.ones(6, 6, 6)  # whole blocks for every rule
    weight[:3] = 9.0
    generator = torch.Generator().manual_seed(0)
    hidden = torch.stack([rule(valid, generator, (1, 1, 1), weight) for _ in range(60)]).float()
    assert hidden[:, :3].mean() > hidden[:, 3:].mean() + 0.15
    even = torch.stack([rule(valid, generator) for _ in range(60)]).float()
    assert hidden.mean() == pytest.approx(even.mean().item(), abs=0.03), "weights must not change how much is hidden"


def test_the_first_draw_has_chances_in_proportion_to_the_weights():
    rule, generator = UniformCells(ratio=0.01), torch.Generator().manual_seed(0)
    weight = torch.tensor([1.0, 2.0, 5.0, 0.0]).view(4, 1, 1)
    valid = torch.ones(4, 1, 1, dtype=torch.bool)
    share = sum(rule(valid, generator, (1, 1, 1), weight).double() for _ in range(4000)).flatten() / 4000
    torch.testing.assert_close(share, weight.flatten().double() / 8, rtol=0, atol=0.03)


def test_what_weighs_nothing_is_hidden_only_when_nothing_else_is_left():
    weight = torch.zeros(4, 4, 1)
    weight[0] = 1.0
    hidden = UniformCells(ratio=0.5)(torch.ones(4, 4, 1, dtype=torch.bool), torch.Generator(), (1, 1, 1), weight)
    assert hidden[0].all() and hidden.sum() == 8


def test_weights_in_padding_do_not_count():
    valid = torch.zeros(4, 2, 2, dtype=torch.bool)
    valid[:2] = True
    weight = torch.where(valid, torch.rand(4, 2, 2), torch.full((4, 2, 2), 1e6))
    hidden = UniformCells(ratio=0.5)(valid, torch.Generator(), (1, 1, 1), weight)
    assert hidden.sum() == 4 and not (hidden & ~valid).any()
