# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""Activations, sums, products and dropout, on every executor, against plain formulas."""

from __future__ import annotations

import operator

import pytest
import torch
import torch.nn.functional as F
from monai.networks.layers import Act, DropPath
from monai.networks.nets.efficientnet import drop_connect
from torch import nn
from torch.utils.checkpoint import checkpoint

from bundle.sparse import SparseVolume, UnsupportedOperation
from tests.sparse.examples import CELL_SHAPE, example, run, visible_rows
from tests.sparse.oracle import site_mask

POINTWISE = [
    nn.ReLU(),
    nn.ReLU(inplace=True),
    nn.LeakyReLU(0.1),
    nn.LeakyReLU(0.1, inplace=True),
    nn.PReLU(),
    nn.PReLU(4),
    nn.RReLU().eval(),
    nn.ELU(),
    nn.ELU(inplace=True),
    nn.CELU(),
    nn.SELU(inplace=True),
    nn.GELU(),
    nn.SiLU(),
    nn.Hardswish(),
    nn.Hardsigmoid(),
    nn.Tanh(),
    Act["swish"](alpha=1.5),
    Act["memswish"](inplace=True),
    nn.Mish(),
    nn.Sigmoid(),
    nn.Softplus(),
    nn.Identity(),
]


@pytest.mark.parametrize("layer", POINTWISE, ids=str)
def test_activations_act_on_visible_sites_and_leave_the_rest_absent(executor, layer):
    image, visible = example()
    layer = layer.double()
    for parameter in layer.parameters():
        nn.init.uniform_(parameter)
    out = run(layer, image.clone(), visible, executor)
    mask = site_mask(visible, CELL_SHAPE)[:, None]
    assert torch.equal(out, torch.where(mask, layer(image.clone()), 0.0))


def test_sums_and_products_with_volumes_and_numbers(executor):
    image, visible = example()
    volume = SparseVolume.from_dense(image, visible, executor)
    mask = site_mask(visible, CELL_SHAPE)[:, None]
    for got, expected in (
        (volume + volume, 2 * image),
        (volume + 1, image + 1),
        (2 * volume, 2 * image),
        (volume * volume, image * image),
        (torch.add(volume, volume, alpha=3), 4 * image),
        (1 - volume, 1 - image),
        (volume - 3 * volume, image - 3 * image),
        (-volume / 4, -image / 4),
        (volume**2, image**2),
    ):
        assert torch.equal(got.to_dense(), torch.where(mask, expected, 0.0))
    volume += volume
    assert torch.equal(volume.to_dense(), torch.where(mask, 2 * image, 0.0))


def test_dense_values_per_sample_and_channel_and_site_broadcast_as_with_a_tensor(executor):
    image, visible = example()
    volume = SparseVolume.from_dense(image, visible, executor)
    mask = site_mask(visible, CELL_SHAPE)[:, None]
    shapes = [(2, 4, 1, 1, 1), (1, 4, 1, 1, 1), (4, 1, 1, 1), (2, 1, 1, 1, 1), (1,), (), image.shape, image.shape[1:]]
    for shape in shapes:
        dense = torch.randn(shape, dtype=torch.float64)
        for got, expected in (
            (volume * dense, image * dense),
            (dense * volume, image * dense),
            (dense - volume, dense - image),
            (volume + dense, image + dense),
        ):
            assert torch.equal(got.to_dense(), torch.where(mask, expected, 0.0)), shape


def test_the_gradient_of_a_value_per_sample_is_that_of_its_visible_sites(executor):
    image, visible = example()
    gate = torch.randn(2, 4, 1, 1, 1, dtype=torch.float64, requires_grad=True)
    (SparseVolume.from_dense(image, visible, executor) * gate).to_dense().sum().backward()
    expected = torch.where(site_mask(visible, CELL_SHAPE)[:, None], image, 0.0).sum((2, 3, 4), keepdim=True)
    torch.testing.assert_close(gate.grad, expected)


def test_dropout_scales_what_it_keeps_of_visible_sites(executor):
    image, visible = example()
    image = image + 10
    rows = visible_rows(run(nn.Dropout(0.25), image, visible, executor), visible)
    kept = rows != 0
    assert 0.6 < kept.double().mean() < 0.9
    torch.testing.assert_close(rows[kept], visible_rows(image, visible)[kept] / 0.75)


def test_channel_dropout_drops_whole_channels_of_a_sample(executor):
    torch.manual_seed(0)
    visible = torch.ones(8, 1, 1, 1, 1, dtype=torch.bool)
    out = run(nn.Dropout3d(0.5), torch.ones(8, 8, 2, 2, 2), visible, executor)
    assert torch.equal(out, out[..., :1, :1, :1].expand_as(out)) and set(out.unique().tolist()) == {0.0, 2.0}
    assert (out[0] != out[1]).any()
    assert (run(nn.Dropout3d(0.5).eval(), torch.ones(8, 8, 2, 2, 2), visible, executor) == 1).all()


@pytest.mark.parametrize("drop", [DropPath(0.5), lambda x: drop_connect(x, 0.5, training=True)])
def test_drop_path_drops_whole_samples(executor, drop):
    torch.manual_seed(0)
    visible = torch.ones(16, 1, 1, 1, 1, dtype=torch.bool)
    out = run(drop, torch.ones(16, 3, 2, 2, 2), visible, executor)
    assert torch.equal(out, out[:, :1, :1, :1, :1].expand_as(out)) and set(out.unique().tolist()) == {0.0, 2.0}


def test_gradient_checkpointing_changes_no_gradient(executor):
    image, visible = example()
    layer = nn.Sequential(nn.Conv3d(4, 4, 3, padding=1), nn.InstanceNorm3d(4), nn.GELU()).double()
    gradients = []
    for forward in (layer, lambda x: checkpoint(layer, x, use_reentrant=False)):
        layer.zero_grad()
        x = image.clone().requires_grad_()
        run(forward, x, visible, executor).square().sum().backward()
        gradients.append([x.grad, layer[0].weight.grad.clone()])
    assert all(torch.equal(a, b) for a, b in zip(*gradients))


def test_a_map_that_broadcasts_along_one_axis_only_is_refused(executor):
    volume = SparseVolume.from_dense(*example(), executor)
    with pytest.raises(UnsupportedOperation, match="1 on each spatial axis"):
        volume * torch.ones(1, 4, 8, 1, 1)


@pytest.mark.parametrize(
    "change", [lambda v: v.add_(1), lambda v: v.mul_(0).add_(2), lambda v: F.hardsigmoid(v, inplace=True)]
)
def test_what_is_written_in_place_leaves_absent_sites_absent_in_the_volume_itself(executor, change):
    image, visible = example()
    volume = SparseVolume.from_dense(image.clone(), visible, executor)
    changed = change(volume)
    mask = site_mask(visible, CELL_SHAPE)[:, None].expand_as(image)
    for one in (volume, changed):
        assert not one.to_dense()[~mask].any() and one.to_dense()[mask].any()
    assert torch.equal(volume.to_dense(), changed.to_dense())


def test_what_is_left_as_it_is_can_still_be_a_leaf_with_gradients(executor):
    image, visible = example()
    volume = SparseVolume.from_dense(image, visible, executor)
    volume.features.requires_grad_()
    volume.contiguous().double().to_dense().sum().backward()
    assert volume.features.grad is not None


def test_a_volume_written_into_a_dense_tensor_is_refused_and_nothing_is_lost(executor):
    image, visible = example()
    volume, dense = SparseVolume.from_dense(image, visible, executor), torch.zeros_like(image)

    def add() -> None:
        other = dense
        other += volume

    for write in (lambda: dense.add_(volume), lambda: dense.mul_(volume), add):
        with pytest.raises(UnsupportedOperation, match="written into a dense tensor"):
            write()
    assert not dense.any()


def test_calls_that_no_rule_can_answer_are_refused_by_name(executor):
    volume = SparseVolume.from_dense(*example(), executor)
    for call, message in (
        (lambda: torch.pow(2.0, volume), "pow with a sparse volume among its further arguments"),
        (lambda: torch.pow(volume, volume), "pow with a sparse volume among its further arguments"),
        (lambda: torch.ones(1).to(volume), "with a sparse volume among its further arguments"),
        (volume.mean, "mean of a sparse volume over axes"),
        (lambda: volume.mean((2, 3, 4), dtype=torch.float32), "mean of a sparse volume as"),
        (lambda: volume == 0, "eq"),
        (lambda: volume != 0, "ne"),
    ):
        with pytest.raises(UnsupportedOperation, match=message):
            call()
    assert {volume: 1}[volume] == 1 and any(one is volume for one in [volume])


def test_a_number_over_a_volume(executor):
    image, visible = example()
    mask = site_mask(visible, CELL_SHAPE)[:, None]
    over = (1 / SparseVolume.from_dense(image, visible, executor)).to_dense()
    assert torch.equal(over, torch.where(mask, 1 / image, 0.0))


def beside_clamp(x, beside):
    return torch.clamp(x, -beside, max=beside)


def beside_pow(x, beside):
    return x.abs().pow(beside)


@pytest.mark.parametrize("function", [beside_clamp, beside_pow])
@pytest.mark.parametrize(
    "shape",
    [(2, 1, 1, 1, 1), (2, 4, 1, 1, 1), (4, 1, 1, 1), (1,), (2, 4, 8, 6, 8), (2, 1, 8, 6, 8), (8, 6, 8)],
    ids=str,
)
@pytest.mark.parametrize("last", [False, True], ids=["", "channels last"])
def test_a_tensor_in_clamp_or_pow_broadcasts_as_with_a_dense_one(executor, function, shape, last):
    image, visible = example()
    beside = torch.rand(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) + 0.5
    goal = torch.where(site_mask(visible, CELL_SHAPE)[:, None], torch.randn_like(image), 0.0)
    found = []
    for sparse in (False, True):
        x, y = image.clone().requires_grad_(), beside.clone().requires_grad_()
        given = SparseVolume.from_dense(x, visible, executor) if sparse else x
        if last:  # what broadcasts from the left has its channels last as well
            y_last = y.view((1,) * (5 - y.ndim) + y.shape).movedim(1, -1)
            out = function(given.movedim(1, -1), y_last).movedim(-1, 1)
        else:
            out = function(given, y)
        out = (out.to_dense() if sparse else out) * (goal != 0)
        found.append([out, *torch.autograd.grad((out * goal).sum(), (x, y))])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def test_a_tensor_for_another_batch_is_refused(executor):
    volume = SparseVolume.from_dense(*example(), executor)
    gate = torch.rand(3, 1, 1, 1, 1)
    for call in (lambda: volume * gate, lambda: gate + volume, lambda: volume.clamp(min=gate)):
        with pytest.raises(UnsupportedOperation, match="2 or 1 on the first axis"):
            call()
    image, visible = example()
    alone = SparseVolume.from_dense(image[:1], visible[:1], executor)
    with pytest.raises(UnsupportedOperation, match="1 or 1 on the first axis"):
        alone * gate


def test_out_is_refused_and_names_of_arguments_are_torchs(executor):
    image, visible = example()
    volume = SparseVolume.from_dense(image, visible, executor)
    out = torch.zeros_like(image)
    with pytest.raises(UnsupportedOperation, match="add with out="):
        torch.add(volume, volume, out=out)
    assert not out.any()
    weight = torch.randn(3, 4, 1, 1, 1, dtype=torch.float64)
    for got, expected in (
        (volume.add(other=1), volume + 1),
        (torch.sub(input=volume, other=volume * 2), -volume),
        (torch.pow(volume, exponent=2), volume**2),
        (F.conv3d(input=volume, weight=weight), F.conv3d(volume, weight)),
        (torch.cat([volume, volume], axis=1), torch.cat([volume, volume], dim=1)),
        (volume.mean(axis=1, keepdims=True), volume.mean(1, keepdim=True)),
    ):
        assert torch.equal(got.to_dense(), expected.to_dense())


@pytest.mark.parametrize("last", [False, True], ids=["", "channels last"])
@pytest.mark.parametrize("other", ["a number", "a gate", "itself"])
@pytest.mark.parametrize(
    "change", [operator.iadd, operator.isub, operator.imul, operator.itruediv, operator.ipow], ids=lambda f: f.__name__
)
def test_an_operator_in_place_changes_the_volume_itself_as_a_tensor(executor, change, other, last):
    image, visible = example()
    image = image.abs() + 0.5
    volume, dense = SparseVolume.from_dense(image, visible, executor), image.clone()
    gate = torch.rand(2, 4, 1, 1, 1, dtype=torch.float64) + 0.5
    one, tensor = (volume.movedim(1, -1), dense.movedim(1, -1)) if last else (volume, dense)
    beside = {"a number": 3, "a gate": gate.movedim(1, -1) if last else gate, "itself": one}[other]
    if other == "itself" and change is operator.ipow:
        with pytest.raises(UnsupportedOperation, match="among its further arguments"):
            change(one, beside)
        return
    changed = change(one, beside)
    change(tensor, tensor if other == "itself" else beside)
    for found in (volume, changed.movedim(-1, 1) if last else changed):
        expected = torch.where(site_mask(visible, CELL_SHAPE)[:, None], dense, 0.0)
        torch.testing.assert_close(found.to_dense(), expected, rtol=0, atol=1e-12)


def test_a_second_volume_by_its_keyword_must_have_the_same_mask(executor):
    image, visible = example()
    volume = SparseVolume.from_dense(image, visible, executor)
    other = SparseVolume.from_dense(image, visible, executor)
    for call in (lambda: torch.clamp(volume, min=other), lambda: torch.pow(volume.sigmoid(), exponent=other)):
        with pytest.raises(ValueError, match="do not share mask and level"):
            call()
    same = SparseVolume.from_dense(image * 2, volume.layout, executor)
    assert torch.equal(torch.clamp(volume, min=same).to_dense(), torch.clamp(volume.to_dense(), min=same.to_dense()))


def test_what_does_nothing_gives_the_volume_that_it_was_given(executor):
    """Written in place, both change, as with dense tensors."""
    image = example()[0]
    visible = torch.ones(2, 1, 2, 3, 2, dtype=torch.bool)

    def both(x):
        y = torch.nn.Dropout(0.5).eval()(x)
        return y + F.relu_(x)

    dense = both(image.clone())
    torch.testing.assert_close(both(SparseVolume.from_dense(image.clone(), visible, executor)).to_dense(), dense)
