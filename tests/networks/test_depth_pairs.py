# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from bundle.errors import UserError
from bundle.networks import EncoderDepthPairs, Level, View
from bundle.sparse import CellLayout, SparseVolume

LEVELS = [Level(4, (1, 1, 1)), Level(6, (2, 2, 1)), Level(6, (4, 2, 2))]


def volumes(layout: CellLayout, dense: list[torch.Tensor]) -> list[SparseVolume]:
    return [SparseVolume.from_dense(x, layout) for x in dense]


def view(features: list[SparseVolume], spacing: torch.Tensor, full: list[SparseVolume] | None = None) -> View:
    return View(features, full, spacing, torch.arange(len(spacing)), torch.zeros(len(spacing), 3))


def dense_features() -> list[torch.Tensor]:
    torch.manual_seed(0)
    return [torch.randn(2, level.channels, *(8 // s for s in level.stride)) for level in LEVELS]


def test_pairs_are_the_projected_features_of_one_place_at_two_depths():
    layout, dense = CellLayout(torch.rand(2, 1, 2, 4, 4) > 0.4), dense_features()
    heads = EncoderDepthPairs(levels=LEVELS, dim=5, samples=10)
    spacing = torch.tensor([[1.0, 2.0, 3.0], [0.5, 0.5, 5.0]])
    pairs = heads([view(volumes(layout, dense), spacing)])
    assert len(pairs) == 2
    for depth, pair in enumerate(pairs):
        ratio = [c // f for f, c in zip(LEVELS[depth].stride, LEVELS[depth + 1].stride)]
        pooled = F.avg_pool3d(dense[depth], ratio)  # the whole finer map on the coarser grid, then projected
        query = torch.einsum("bcdhw,oc->bdhwo", pooled, heads.project[depth].weight)
        key = torch.einsum("bcdhw,oc->bdhwo", dense[depth + 1], heads.project[depth + 1].weight)
        stride = torch.tensor(LEVELS[depth + 1].stride)
        place = (pair.position / spacing[pair.volume] / stride - 0.5).round().long()
        at = (pair.volume, *place.unbind(1))
        torch.testing.assert_close(pair.query, query[at])
        torch.testing.assert_close(pair.key, key[at])
        block = tuple(8 // s // g for s, g in zip(LEVELS[depth + 1].stride, (2, 4, 4)))
        assert layout.site_mask(block)[at[0], 0, at[1], at[2], at[3]].all()


def test_fewer_visible_sites_than_samples_are_all_taken():
    visible = torch.zeros(2, 1, 2, 4, 4, dtype=torch.bool)
    visible[1, 0, 0, 0, 0] = True
    pairs = EncoderDepthPairs(levels=LEVELS)([view(volumes(CellLayout(visible), dense_features()), torch.ones(2, 3))])
    assert [len(pair.query) for pair in pairs] == [4, 1]


def test_the_gradient_reaches_both_depths():
    dense = [x.requires_grad_() for x in dense_features()]
    layout = CellLayout(torch.ones(2, 1, 2, 4, 4, dtype=torch.bool))
    pairs = EncoderDepthPairs(levels=LEVELS)([view(volumes(layout, dense), torch.ones(2, 3))])
    sum((pair.query * pair.key).sum() for pair in pairs).backward()
    assert all(x.grad.abs().sum() > 0 for x in dense)


def test_with_a_teacher_the_keys_are_its_own_at_the_same_sites_and_carry_no_gradient():
    seen, everything = torch.rand(2, 1, 2, 4, 4) > 0.4, torch.ones(2, 1, 2, 4, 4, dtype=torch.bool)
    dense, taught = dense_features(), [x + 5 for x in dense_features()]
    torch.manual_seed(3)
    heads, teacher = (EncoderDepthPairs(levels=LEVELS, dim=5, samples=10, predictor=p) for p in (True, False))
    full = volumes(CellLayout(everything), taught)
    spacing = torch.ones(2, 3)
    pairs = heads([view(volumes(CellLayout(seen), dense), spacing, full)], teacher)
    assert len(pairs) == 4  # both ways
    for depth, pair in enumerate(pairs[::2]):
        place = (pair.position / torch.tensor(LEVELS[depth + 1].stride) - 0.5).round().long()
        expected = teacher.project[depth + 1](taught[depth + 1][(pair.volume, slice(None), *place.unbind(1))])
        torch.testing.assert_close(pair.key, expected)
        assert not pair.key.requires_grad
        assert pair.query.requires_grad


def test_the_plain_form_has_the_designs_numbers():
    heads = EncoderDepthPairs(levels=LEVELS)
    assert heads.samples == 256
    assert all(isinstance(p, torch.nn.Linear) and p.out_features == 128 for p in heads.project)
    assert all(isinstance(p, torch.nn.Identity) for p in heads.predict)


def test_an_unknown_head_is_named():
    with pytest.raises(UserError, match="unknown alignment head 'deep': choose linear or mlp"):
        EncoderDepthPairs(levels=LEVELS, head="deep")


def test_the_way_back_asks_the_teachers_finer_depth():
    everything = torch.ones(2, 1, 2, 4, 4, dtype=torch.bool)
    dense, taught = dense_features(), [x + 5 for x in dense_features()]
    heads, teacher = (EncoderDepthPairs(levels=LEVELS, dim=5, samples=10) for _ in range(2))
    layout = CellLayout(everything)
    pairs = heads([view(volumes(layout, dense), torch.ones(2, 3), volumes(layout, taught))], teacher)
    for depth, pair in enumerate(pairs[1::2]):
        stride = LEVELS[depth + 1].stride
        place = (pair.position / torch.tensor(stride) - 0.5).round().long()
        pooled = F.avg_pool3d(taught[depth], [c // f for f, c in zip(LEVELS[depth].stride, stride)])
        at = (pair.volume, slice(None), *place.unbind(1))
        torch.testing.assert_close(pair.key, teacher.project[depth](pooled[at]))
        torch.testing.assert_close(pair.query, heads.project[depth + 1](dense[depth + 1][at]))
