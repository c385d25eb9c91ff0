# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""Children: where they are cut, what they hold, and that nothing depends on the batch."""

from __future__ import annotations

import itertools
from collections import Counter

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from bundle.cells import triple
from bundle.errors import UserError
from bundle.masking import AdaptiveBlocks, ChildLevel, MaskInMask, MaskSampler, UniformCells
from bundle.masking.places import place_inside

CELL = (4, 4, 2)


def sampler(ratio: float = 0.6, rule=AdaptiveBlocks) -> MaskSampler:
    return MaskSampler(rule=rule(ratio=ratio), cell=CELL, seed=3)


def nested(*levels: ChildLevel, **options) -> MaskInMask:
    return MaskInMask(masking=sampler(**options), levels=levels)


def batch(size=(32, 24, 16), rows: int = 3, spacing=(1.0, 0.7, 4.0)) -> dict[str, torch.Tensor]:
    """Every voxel's value tells which it is."""
    torch.manual_seed(0)
    image = torch.arange(rows * size[0] * size[1] * size[2], dtype=torch.float64).view(rows, 1, *size)
    valid = torch.ones_like(image, dtype=torch.bool)
    return {
        "image": image,
        "valid": valid,
        "foreground": image % 3 == 0,
        "draw": torch.arange(10, 10 + rows),
        "spacing": torch.tensor(spacing).expand(rows, 3) * torch.linspace(1, 2, rows)[:, None],
        "weight": None,
    }


def centre_cell(corner: torch.Tensor, extent: torch.Tensor, cell) -> torch.Tensor:
    return ((corner + extent / 2) / torch.tensor(cell)).floor().long()


@pytest.mark.parametrize("rule", [AdaptiveBlocks, UniformCells])
@pytest.mark.parametrize("size", [(8, 8, 4), (16, 12, 8), (32, 24, 14)])
def test_a_childs_centre_is_masked_in_its_parent_and_its_voxels_are_the_parents(size, rule):
    data = batch()
    level = ChildLevel(masking=sampler(0.5), children=4, size=size)
    mask, (children,) = nested(level, rule=rule)(**data)
    assert len(children.image) == 4 * len(data["image"])
    for child, row in enumerate(children.parent.tolist()):
        cell = centre_cell(children.corner[child], children.extent[child], CELL)
        assert mask.hidden[(row, 0, *cell)], "the parent saw the child's centre"
        window = tuple(slice(c, c + s) for c, s in zip(children.corner[child].tolist(), size))
        assert torch.equal(children.image[child], data["image"][(row, slice(None), *window)])
        assert torch.equal(children.foreground[child], data["foreground"][(row, slice(None), *window)])
    torch.testing.assert_close(children.spacing, data["spacing"][children.parent].to(children.spacing.dtype))


def test_children_of_children_follow_the_same_rule():
    levels = [ChildLevel(masking=sampler(0.6), children=2, size=(16, 16, 8)) for _ in range(2)]
    levels[1] = ChildLevel(masking=sampler(0.5), children=3, size=(8, 8, 4))
    mask, (first, second) = nested(*levels)(**batch())
    assert len(first.image) == 6 and len(second.image) == 18
    for child, row in enumerate(second.parent.tolist()):
        assert first.hidden[(row, 0, *centre_cell(second.corner[child], second.extent[child], CELL))]
        window = tuple(slice(c, c + e) for c, e in zip(second.corner[child].tolist(), second.extent[child].tolist()))
        assert torch.equal(second.image[child], first.image[(row, slice(None), *window)])
    assert not (first.visible & first.hidden).any() and first.visible.flatten(1).any(1).all()
    assert not (mask.visible & mask.hidden).any()


@settings(max_examples=60)
@given(st.data())
def test_it_holds_for_any_grid_extent_and_mask(data: st.DataObject):
    grid = data.draw(st.tuples(*[st.integers(1, 5)] * 3).filter(lambda g: g[0] * g[1] * g[2] > 1), "cells")
    voxels = tuple(g * c for g, c in zip(grid, CELL))
    cells = data.draw(st.tuples(*[st.integers(1, g) for g in grid]).filter(lambda g: g[0] * g[1] * g[2] > 1), "child")
    size = tuple(g * c for g, c in zip(cells, CELL))
    example = batch(voxels, rows=2)
    masking = MaskSampler(
        rule=UniformCells(ratio=data.draw(st.floats(0.05, 0.95))), cell=CELL, seed=data.draw(st.integers(0, 99))
    )
    level = ChildLevel(masking=sampler(0.5), children=2, size=size)
    mask, (children,) = MaskInMask(masking=masking, levels=[level])(**example)
    alone = masking(example["valid"], example["draw"])
    assert torch.equal(mask.hidden.flatten(1).sum(1), alone.hidden.flatten(1).sum(1)), "as many cells stay hidden"
    assert torch.equal(mask.visible, ~mask.hidden)
    assert (children.corner >= 0).all()
    assert (children.corner + children.extent <= torch.tensor(voxels)).all()
    for child in (1, 3):  # the last of each crop: no later child moved what it relies on
        cell = centre_cell(children.corner[child], children.extent[child], CELL)
        assert mask.hidden[(children.parent[child], 0, *cell)]


def test_the_extent_in_mm_is_the_same_for_thin_and_thick_slices():
    data = batch((32, 32, 32), rows=2)
    data["spacing"] = torch.tensor([[1.0, 1.0, 1.0], [1.0, 1.0, 4.0]])
    level = ChildLevel(masking=sampler(), children=1, size=(16, 16, 8), extent_mm=16)
    _, (children,) = nested(level)(**data)
    assert children.extent.tolist() == [[16, 16, 16], [16, 16, 4]]
    torch.testing.assert_close(children.spacing * torch.tensor([16, 16, 8]), torch.full((2, 3), 16.0))


def test_another_extent_than_the_size_is_resampled_over_the_same_place():
    data = batch((32, 24, 16), rows=1)
    # a ramp along the first axis: trilinear resampling keeps it a ramp
    data["image"] = torch.arange(32.0).view(1, 1, 32, 1, 1).expand(1, 1, 32, 24, 16).clone()
    level = ChildLevel(masking=sampler(), children=2, size=(16, 16, 8), extent=(8, 8, 4))
    _, (children,) = nested(level)(**data)
    for child in range(2):
        places = children.corner[child, 0] + (torch.arange(16) + 0.5) * 8 / 16 - 0.5
        inside = slice(1, 15)  # beyond the outermost voxels' centres interpolation repeats them
        torch.testing.assert_close(children.image[child, 0, inside, 3, 3], places[inside])
    torch.testing.assert_close(children.spacing, data["spacing"].float() / 2 * torch.ones(2, 3))


def test_a_larger_extent_is_averaged():
    data = batch((32, 32, 16), rows=1)
    data["image"] = torch.randn(1, 1, 32, 32, 16)
    level = ChildLevel(masking=sampler(), children=1, size=(8, 8, 4), extent=(16, 16, 8))
    _, (children,) = nested(level)(**data)
    window = tuple(slice(c, c + e) for c, e in zip(children.corner[0].tolist(), (16, 16, 8)))
    torch.testing.assert_close(children.image[0], F.avg_pool3d(data["image"][(0, slice(None), *window)], 2))


def test_children_depend_on_the_draw_only_not_on_the_batch():
    data = batch()
    masking = nested(ChildLevel(masking=sampler(), children=2, size=(8, 8, 4)))
    _, (together,) = masking(**data)
    _, (alone,) = masking(**{k: None if v is None else v[1:2] for k, v in data.items()})
    for name, value in vars(alone).items():
        if name != "parent":
            assert torch.equal(value, getattr(together, name)[2:4]), name
    _, (other,) = masking(**(data | {"draw": data["draw"] + 1}))
    assert not torch.equal(other.corner, together.corner)


@settings(max_examples=25)
@given(st.data())
def test_children_lie_inside_what_is_hidden_where_there_is_room(data: st.DataObject):
    grid = data.draw(st.tuples(*[st.integers(1, 4)] * 3), "cells")
    size, cells = triple(g * c for g, c in zip(grid, CELL)), torch.rand(grid) < data.draw(st.floats(0, 1))
    extent = triple(data.draw(st.integers(1, s)) for s in size)
    voxels = cells.repeat_interleave(4, 0).repeat_interleave(4, 1).repeat_interleave(2, 2)
    places = [  # a plain loop over all corners
        corner
        for corner in itertools.product(*(range(s - e + 1) for s, e in zip(size, extent)))
        if voxels[tuple(slice(c, c + e) for c, e in zip(corner, extent))].all()
    ]
    found = {place_inside(cells, CELL, size, extent, torch.Generator().manual_seed(seed)) for seed in range(8)}
    assert found <= set(places) if places else found == {None}
    assert len(found) > 1 or len(places) < 5


def test_every_such_place_is_drawn_alike():
    cells = torch.tensor([True, True, False, True]).view(4, 1, 1)
    generator = torch.Generator().manual_seed(0)
    drawn = [place_inside(cells, (4, 4, 2), (16, 4, 2), (3, 4, 2), generator) for _ in range(600)]
    counts = Counter(corner[0] for corner in drawn)
    assert counts.keys() == {*range(6), 12, 13}
    assert all(abs(count - 75) < 43 for count in counts.values())  # 5 deviations


def test_a_level_asks_for_places_inside():
    mask, (children,) = nested(ChildLevel(masking=sampler(), children=3, size=(8, 8, 4), inside=True))(**batch())
    for child, row in enumerate(children.parent.tolist()):
        first, last = children.corner[child], children.corner[child] + children.extent[child] - 1
        window = tuple(
            slice(a, b + 1) for a, b in zip(*((end // torch.tensor(CELL)).tolist() for end in (first, last)))
        )
        assert mask.hidden[(row, 0, *window)].all()


def test_no_levels_is_plain_masking():
    data = batch()
    mask, levels = nested()(**data)
    expected = sampler()(data["valid"], data["draw"])
    assert levels == [] and torch.equal(mask.hidden, expected.hidden) and torch.equal(mask.visible, expected.visible)


def test_the_centres_are_spread_over_what_is_hidden():
    data = batch((32, 32, 16), rows=1)
    level = ChildLevel(masking=sampler(), children=1, size=(8, 8, 4))
    corners = []
    for draw in range(200):
        _, (children,) = nested(level)(**(data | {"draw": torch.tensor([draw])}))
        corners.append(children.corner[0])
    corners = torch.stack(corners).double()
    assert corners.min() == 0 and (corners.amax(0) == torch.tensor([24, 24, 12])).all()


def test_a_crop_that_is_mostly_padding_still_gets_children():
    data = batch((32, 32, 16), rows=1)
    data["valid"] = torch.zeros_like(data["valid"])
    data["valid"][..., :8, :4, :2] = True
    level = ChildLevel(masking=sampler(), children=2, size=(24, 24, 12))
    mask, (children,) = nested(level)(**data)
    assert children.visible.flatten(1).any(1).all() and children.hidden.flatten(1).any(1).all()
    assert mask.visible.any()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"size": (9, 8, 4)}, "a child's size"),
        ({"size": (4, 4, 2)}, "a child's size"),
        ({"children": 0}, "children 0"),
        ({"extent": (8, 8, 8), "extent_mm": 8}, "both extent and extent_mm"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(arguments, message):
    with pytest.raises(UserError, match=message):
        ChildLevel(**{"masking": sampler(), "size": (8, 8, 4)} | arguments)


def test_a_child_larger_than_its_parent_is_refused_with_the_sizes():
    with pytest.raises(UserError, match=r"\[64, 8, 4\].*\[32, 24, 16\]"):
        nested(ChildLevel(masking=sampler(), size=(64, 8, 4)))(**batch())
    with pytest.raises(UserError, match="at most two"):
        nested(*[ChildLevel(masking=sampler(), size=(8, 8, 4))] * 3)


def test_passes_are_counted():
    level = ChildLevel(masking=sampler(), children=4, size=(8, 8, 4))
    assert nested().passes == [1]
    assert nested(level, level).passes == [1, 4, 16]  # as MiM's
