# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""Blocks, rows and dense maps hold the same features: each site is looked up by its place."""

from __future__ import annotations

import pytest
import torch

from bundle.sparse import CellLayout, Window
from bundle.sparse.storage import (
    blocks_to_dense,
    blocks_to_rows,
    channels_last,
    dense_to_blocks,
    empty_blocks,
    frame,
    rows_to_blocks,
    widen,
    zero_absent,
)
from tests.sparse.examples import CELL_SHAPE, example
from tests.sparse.oracle import site_mask


@pytest.fixture
def dense() -> torch.Tensor:
    return example()[0]


@pytest.fixture
def layout() -> CellLayout:
    return CellLayout(example()[1])


def test_a_block_is_the_cells_part_of_the_dense_map(dense, layout):
    blocks = dense_to_blocks(dense, layout, CELL_SHAPE)
    assert blocks.is_contiguous(memory_format=torch.channels_last_3d)
    for block, (b, z, y, x) in zip(blocks, layout.cells.tolist(), strict=True):
        assert torch.equal(block, dense[b, :, 4 * z : 4 * z + 4, 2 * y : 2 * y + 2, 4 * x : 4 * x + 4])


def test_rows_are_a_view_of_blocks_with_one_site_each(dense, layout):
    blocks = dense_to_blocks(dense, layout, CELL_SHAPE)
    rows = blocks_to_rows(blocks)
    assert rows.data_ptr() == blocks.data_ptr() and torch.equal(rows[32 + 13], blocks[1, :, 1, 1, 1])
    again = rows_to_blocks(rows, CELL_SHAPE)
    assert again.data_ptr() == blocks.data_ptr() and torch.equal(again, blocks)


def test_dense_maps_have_zero_or_the_fill_where_nothing_is_visible(dense, layout):
    mask, blocks = site_mask(layout.visible[:, None], CELL_SHAPE)[:, None], dense_to_blocks(dense, layout, CELL_SHAPE)
    fill = torch.arange(4.0)
    assert torch.equal(blocks_to_dense(blocks, layout, CELL_SHAPE), torch.where(mask, dense, 0.0))
    filled = blocks_to_dense(blocks, layout, CELL_SHAPE, fill)
    assert torch.equal(filled, torch.where(mask, dense, fill.double().view(1, 4, 1, 1, 1)))


def test_absent_sites_become_zero_even_from_nan(dense, layout):
    mask = site_mask(layout.visible[:, None], CELL_SHAPE)[:, None]
    assert torch.equal(
        zero_absent(torch.where(mask, dense, torch.nan), layout, CELL_SHAPE), torch.where(mask, dense, 0)
    )


@pytest.mark.parametrize("parts", [1, 3])
def test_widened_blocks_are_windows_of_the_framed_map(dense, layout, parts):
    mask = site_mask(layout.visible[:, None], CELL_SHAPE)[:, None]
    window = Window((4, 3, 5), padding=(1, 1, 2))
    framed = frame(torch.where(mask, dense, 7.0), window, 7.0)
    rows = blocks_to_rows(dense_to_blocks(dense, layout, CELL_SHAPE))
    tables = layout.halos(CELL_SHAPE, window.padding, window.high, parts)
    assert len(tables) == parts and sum(len(layout.cells[table.cells]) for table in tables) == len(layout)
    for table in tables:
        for block, (b, z, y, x) in zip(widen(rows, table, 7.0), layout.cells[table.cells].tolist(), strict=True):
            assert torch.equal(block, framed[b, :, 4 * z : 4 * z + 7, 2 * y : 2 * y + 4, 4 * x : 4 * x + 8])


def test_empty_blocks_and_channels_last_have_channels_beside_each_other():
    blocks = empty_blocks(torch.zeros(2, dtype=torch.bfloat16), 3, 4, CELL_SHAPE)
    assert blocks.shape == (3, 4, *CELL_SHAPE) and blocks.dtype == torch.bfloat16 and blocks.stride(1) == 1
    assert channels_last(torch.zeros(3, 4, *CELL_SHAPE)).stride(1) == 1
