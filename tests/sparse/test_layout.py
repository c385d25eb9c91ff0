# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
from __future__ import annotations

import pytest
import torch

from bundle.sparse import CellLayout, SparseVolume, places
from tests.sparse.calls import Calls


def visible_cells(*places: tuple[int, int, int, int], shape: tuple[int, ...] = (2, 1, 3, 2, 2)) -> torch.Tensor:
    visible = torch.zeros(shape, dtype=torch.bool)
    for b, z, y, x in places:
        visible[b, 0, z, y, x] = True
    return visible


def test_counts_are_per_sample_and_may_differ():
    layout = CellLayout(visible_cells((0, 0, 0, 0), (0, 2, 1, 1), (1, 1, 0, 1)))
    assert layout.counts == [2, 1] and len(layout) == 3


def test_site_mask_repeats_each_cell_over_its_block():
    layout = CellLayout(visible_cells((0, 1, 0, 1)))
    mask = layout.site_mask((2, 1, 3))
    assert mask.shape == (2, 1, 6, 2, 6) and mask.sum() == 6 and mask[0, 0, 2:4, 0, 3:6].all()


def test_tables_are_built_once_per_mask():
    layout = CellLayout(visible_cells((0, 0, 0, 0)))
    assert layout.halo((2, 2, 2), (1, 1, 1), (1, 1, 1)) is layout.halo((2, 2, 2), (1, 1, 1), (1, 1, 1))


@pytest.mark.parametrize("width", [0, 1, 3])
def test_halo_reads_the_neighbouring_cells_sites_and_nothing_outside(width: int):
    torch.manual_seed(0)
    visible = torch.rand(2, 1, 3, 2, 2) > 0.4
    layout, cell_shape = CellLayout(visible), (2, 1, 2)
    table = layout.halo(cell_shape, (width,) * 3, (width,) * 3)
    rows = table.rows.view(len(layout), *table.shape)
    absent = torch.zeros(rows.numel(), dtype=torch.bool)
    absent[table.absent] = True
    absent = absent.view(rows.shape)
    order = {tuple(cell): n for n, cell in enumerate(layout.cells.tolist())}
    for n, (b, cz, cy, cx) in enumerate(layout.cells.tolist()):
        for i, z in enumerate(range(cz * 2 - width, cz * 2 + 2 + width)):
            for j, y in enumerate(range(cy - width, cy + 1 + width)):
                for k, x in enumerate(range(cx * 2 - width, cx * 2 + 2 + width)):
                    neighbour = order.get((b, z // 2, y, x // 2))
                    assert absent[n, i, j, k] == (neighbour is None)
                    if neighbour is not None:
                        assert rows[n, i, j, k] == neighbour * 4 + (z % 2) * 2 + x % 2


@pytest.mark.parametrize("widths", [((0, 0, 0), (0, 0, 0)), ((1, 2, 3), (3, 0, 5)), ((-1, 1, 0), (1, -1, 4))])
def test_what_is_absent_is_counted_as_the_device_finds_it(widths):
    low, high = widths
    layout, cell_shape = (
        CellLayout(torch.rand(2, 1, 3, 2, 2, generator=torch.Generator().manual_seed(0)) > 0.4),
        (4, 2, 1),
    )
    for table in layout.halos(cell_shape, low, high, parts=3):
        sites = [[range(-lo, b + hi)] for b, lo, hi in zip(cell_shape, low, high)]
        assert int(layout.count_absent(cell_shape, sites, table.cells).sum()) == len(table.absent)
        assert (table.absent >= 0).all() and (table.absent.diff() > 0).all()


def test_a_mask_on_the_cpu_lays_out_features_on_another_device():
    visible = visible_cells((0, 0, 0, 0), (1, 2, 1, 0))
    layout = CellLayout(visible, torch.device("meta"))
    tables = layout.halo((2, 2, 2), (1, 1, 1), (1, 1, 1))
    assert layout.counts == [1, 1]
    assert {x.device.type for x in (layout.cells, layout.visible, layout.slots, tables.rows, tables.absent)} == {"meta"}
    assert tables.absent.shape == CellLayout(visible).halo((2, 2, 2), (1, 1, 1), (1, 1, 1)).absent.shape


def test_neighbours_of_a_cell_are_its_own_number_and_those_around():
    layout = CellLayout(visible_cells((0, 0, 0, 0), (0, 1, 0, 1), (1, 0, 0, 0)))
    near = layout.neighbour_cells((0, 0, 1), (1, 0, 1)).view(3, 2, 1, 3)
    assert near.dtype == torch.int32
    assert near[:, 0, 0, 1].tolist() == [0, 1, 2]
    assert near[0].flatten().tolist() == [-1, 0, -1, -1, -1, 1]
    assert near[1].flatten().tolist() == [-1, 1, -1, -1, -1, -1]


def test_drawn_sites_are_visible_distinct_and_cover_all_when_asked():
    layout = CellLayout(visible_cells((0, 0, 0, 0), (1, 2, 1, 0)))
    sites = layout.draw_sites(1000, (2, 2, 3))
    assert len(sites) == 24 == len(sites.unique(dim=0))
    assert all(layout.site_mask((2, 2, 3))[b, 0, z, y, x] for b, z, y, x in sites.tolist())


def test_drawing_is_repeatable_from_a_generator():
    layout = CellLayout(torch.ones(1, 1, 4, 4, 4, dtype=torch.bool))
    first, again = (layout.draw_sites(5, (1, 1, 1), torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(first, again)


def test_no_visible_cell_is_refused():
    with pytest.raises(ValueError, match="no cell is visible"):
        CellLayout(torch.zeros(1, 1, 2, 2, 2, dtype=torch.bool))


def test_a_mask_of_another_kind_is_refused():
    with pytest.raises(ValueError, match="bool tensor"):
        CellLayout(torch.ones(1, 1, 2, 2, 2))


def test_a_table_of_a_new_mask_takes_few_programs_of_the_device():
    first, second = (CellLayout(torch.rand(2, 1, 3, 2, 2) > 0.4) for _ in range(2))
    for layout in (first, second):
        layout.halo((8, 8, 8), (1, 1, 1), (0, 0, 0))  # what all tables of a mask share
    first.halo((4, 4, 4), (1, 1, 1), (1, 1, 1))  # what all masks share
    with Calls() as calls:
        second.halo((4, 4, 4), (1, 1, 1), (1, 1, 1))
    views = {"unsqueeze", "slice", "select", "view"}
    started = sum(count for name, count in calls.counts.items() if name not in views)
    assert started <= 6, calls.counts


def test_what_masks_share_serves_gradients_though_it_was_found_without():
    visible = torch.ones(1, 1, 2, 2, 3, dtype=torch.bool)
    with torch.inference_mode():
        CellLayout(visible).halo((3, 3, 3), (1, 1, 1), (1, 1, 1))
    table = CellLayout(visible).halo((3, 3, 3), (1, 1, 1), (1, 1, 1))
    features = torch.randn(12 * 27, 1, requires_grad=True)
    features.index_select(0, table.rows).sum().backward()
    assert features.grad is not None


def test_places_of_ever_new_grids_do_not_fill_the_memory(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(places, "_FOUND", {})
    monkeypatch.setattr(places, "_MOST", 3)
    for size in range(1, 9):
        found = places.find_places((2, 2, 2), (1, 1, 1), (1, 1, 1), (size, size, size), torch.device("cpu"))
        assert places.find_places((2, 2, 2), (1, 1, 1), (1, 1, 1), (size, size, size), torch.device("cpu")) is found
        assert len(places._FOUND) <= 3


@pytest.mark.parametrize("executor", ["cells", "masked"])
@pytest.mark.parametrize("made_in_inference", [False, True], ids=["", "the layout as well"])
def test_what_is_first_asked_for_in_inference_serves_gradients_later(executor: str, made_in_inference: bool):
    visible = visible_cells((0, 0, 0, 0), (0, 1, 0, 1), (1, 2, 1, 0))
    image = torch.randn(2, 3, 12, 8, 8, dtype=torch.float64)
    layer = torch.nn.Sequential(torch.nn.Conv3d(3, 3, 3, padding=1), torch.nn.AvgPool3d(3, 1, 1)).double()

    def forward(image: torch.Tensor, layout: CellLayout) -> torch.Tensor:
        volume = layer(SparseVolume.from_dense(image, layout, executor))
        return volume.to_dense() * torch.nn.functional.adaptive_avg_pool3d(volume * volume.mean((2, 3, 4), True), 1)

    with torch.inference_mode():
        layout = CellLayout(visible.clone()) if made_in_inference else None
    layout = CellLayout(visible) if layout is None else layout
    with torch.inference_mode():
        forward(image, layout)
        layout.draw_sites(5, (4, 4, 4))
    found = []
    for one in (layout, CellLayout(visible)):
        x = image.clone().requires_grad_()
        found.append(torch.autograd.grad(forward(x, one).sum(), (x, *layer.parameters())))
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_a_mask_that_is_changed_afterwards_changes_no_volume():
    image, visible = (
        torch.randn(1, 4, 8, 8, 8),
        torch.rand(1, 1, 2, 2, 2, generator=torch.Generator().manual_seed(3)) < 0.4,
    )
    layer = torch.nn.Conv3d(4, 4, 3, padding=1)
    expected = layer(SparseVolume.from_dense(image, visible.clone())).to_dense()
    volume = SparseVolume.from_dense(image, visible)
    visible.logical_not_()
    assert torch.equal(layer(volume).to_dense(), expected)
