# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""Norms, on every executor, against their formulas on the gathered visible rows."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from monai.networks.layers.utils import get_norm_layer
from torch import nn

from bundle.errors import user_error_in
from bundle.sparse import UnsupportedOperation
from tests.sparse.examples import CELL_SHAPE, example, run, visible_rows
from tests.sparse.oracle import site_mask


def test_batch_norm_is_over_all_visible_sites_and_updates_running_statistics(executor):
    image, visible = example()
    layer = nn.BatchNorm3d(4).double()
    nn.init.normal_(layer.weight), nn.init.normal_(layer.bias)
    out = run(layer, image, visible, executor)
    rows = visible_rows(image, visible)
    normal = (rows - rows.mean(0)) / (rows.var(0, unbiased=False) + layer.eps).sqrt() * layer.weight + layer.bias
    torch.testing.assert_close(visible_rows(out, visible), normal, rtol=0, atol=1e-12)
    assert (out.permute(0, 2, 3, 4, 1)[~site_mask(visible, CELL_SHAPE)] == 0).all()
    torch.testing.assert_close(layer.running_mean, 0.1 * rows.mean(0))
    torch.testing.assert_close(layer.running_var, 0.9 + 0.1 * rows.var(0))


def test_batch_norm_in_eval_uses_running_statistics(executor):
    image, visible = example()
    layer = nn.BatchNorm3d(4).double().eval()
    layer.running_mean.fill_(0.5), layer.running_var.fill_(4.0)
    rows = visible_rows(run(layer, image, visible, executor), visible)
    torch.testing.assert_close(rows, (visible_rows(image, visible) - 0.5) / (4 + layer.eps) ** 0.5)


def test_instance_norm_is_per_sample_over_its_visible_sites(executor):
    image, visible = example()
    image[1] = image[1] * 5 + 3  # a statistic pooled over the batch would show
    out = run(nn.InstanceNorm3d(4).double(), image, visible, executor)
    for sample in range(2):
        rows = visible_rows(image, visible, sample)
        normal = (rows - rows.mean(0)) / (rows.var(0, unbiased=False) + 1e-5).sqrt()
        torch.testing.assert_close(visible_rows(out, visible, sample), normal, rtol=0, atol=1e-12)


def test_group_norm_is_per_sample_and_group_over_visible_sites(executor):
    image, visible = example()
    layer = nn.GroupNorm(2, 4).double()
    nn.init.normal_(layer.weight), nn.init.normal_(layer.bias)
    out = run(layer, image, visible, executor)
    for sample in range(2):
        rows = visible_rows(image, visible, sample).view(-1, 2, 2)
        mean, var = rows.mean((0, 2), keepdim=True), rows.var((0, 2), unbiased=False, keepdim=True)
        normal = ((rows - mean) / (var + 1e-5).sqrt()).flatten(1) * layer.weight + layer.bias
        torch.testing.assert_close(visible_rows(out, visible, sample), normal, rtol=0, atol=1e-12)


def one_site(samples: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    """Samples with a single visible site each."""
    visible = torch.zeros(samples, 1, 2, 2, 2, dtype=torch.bool)
    visible[..., 1, 0, 1] = True
    image = torch.randn(samples, 4, 2, 2, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    return image, visible


@pytest.mark.parametrize("groups", [2, 4])
def test_group_norm_of_a_sample_with_a_single_site_is_its_formula(executor, groups):
    image, visible = one_site(samples=2)
    layer = nn.GroupNorm(groups, 4).double()
    nn.init.normal_(layer.weight), nn.init.normal_(layer.bias)
    sparse, dense = image.clone().requires_grad_(), image.clone().requires_grad_()
    out = run(layer, sparse, visible, executor)
    rows = dense[:, :, 1, 0, 1].view(2, groups, -1)
    mean, var = rows.mean(2, keepdim=True), rows.var(2, unbiased=False, keepdim=True)
    normal = ((rows - mean) / (var + layer.eps).sqrt()).flatten(1) * layer.weight + layer.bias
    torch.testing.assert_close(out[:, :, 1, 0, 1], normal, rtol=0, atol=1e-12)
    goal = torch.randn(2, 4, dtype=torch.float64)
    found = torch.autograd.grad((out[:, :, 1, 0, 1] * goal).sum(), (sparse, layer.weight, layer.bias))
    expected = torch.autograd.grad((normal * goal).sum(), (dense, layer.weight, layer.bias))
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


def test_batch_norm_over_a_single_site_is_refused_as_torch_does(executor):
    layer = nn.BatchNorm3d(4).double()
    with pytest.raises(ValueError, match="Expected more than 1 value per channel when training") as refused:
        run(layer, *one_site(), executor)
    assert user_error_in(refused.value) is not None
    assert (layer.running_var == 1).all()
    assert run(layer.eval(), *one_site(), executor).any()


def test_a_sample_with_nothing_visible_changes_nothing_for_the_others(executor):
    image, visible = example()
    alone = run(nn.InstanceNorm3d(4).double(), image[1:], visible[1:], executor)
    visible[0] = False
    both = run(nn.InstanceNorm3d(4).double(), image, visible, executor)
    assert torch.equal(both[1:], alone) and (both[0] == 0).all()


def test_sync_batch_norm_in_a_single_process_is_batch_norm(executor):
    image, visible = example()
    layer = nn.SyncBatchNorm(4).double()
    expected = run(nn.BatchNorm3d(4).double(), image, visible, executor)
    assert torch.equal(run(layer, image, visible, executor), expected)


def test_layer_norm_is_per_sample_over_all_channels_and_visible_sites(executor):
    image, visible = example()
    layer = nn.LayerNorm(image.shape[1:]).double()
    nn.init.normal_(layer.weight), nn.init.normal_(layer.bias)
    out = run(layer, image, visible, executor)
    scale, shift = (p.expand(image.shape) for p in (layer.weight, layer.bias))
    for sample in range(2):
        rows, weight, bias = (visible_rows(t, visible, sample) for t in (image, scale, shift))
        normal = (rows - rows.mean()) / (rows.var(unbiased=False) + layer.eps).sqrt() * weight + bias
        torch.testing.assert_close(visible_rows(out, visible, sample), normal, rtol=0, atol=1e-12)


def test_a_layer_norm_over_channels_that_are_not_last_is_refused(executor):
    with pytest.raises(UnsupportedOperation, match="where they are last"):
        run(nn.LayerNorm(8), *example(), executor)


def test_a_norm_over_channels_written_as_means_over_axis_1(executor):
    image, visible = example()

    def channels_first(x):  # ConvNeXt's
        mean = x.mean(1, keepdim=True)
        var = (x - mean).pow(2).mean(1, keepdim=True)
        return (x - mean) / torch.sqrt(var + 1e-6)

    rows = visible_rows(image, visible)
    normal = (rows - rows.mean(1, keepdim=True)) / (rows.var(1, unbiased=False, keepdim=True) + 1e-6).sqrt()
    out = run(channels_first, image.requires_grad_(), visible, executor)
    torch.testing.assert_close(visible_rows(out, visible), normal, rtol=0, atol=1e-12)
    out.sum().backward()
    assert image.grad.isfinite().all()


NORMS = ["batch", "instance", ("instance", {"affine": True}), ("group", {"num_groups": 2}), "syncbatch"]


@pytest.mark.parametrize("norm", NORMS, ids=str)
def test_bfloat16_autocast_keeps_statistics_near_float32(executor, norm):
    image, visible = example()
    image = (image * 0.1 + 5).bfloat16()  # statistics taken in bfloat16 would lose what is left beside this mean
    layer = get_norm_layer(norm, spatial_dims=3, channels=4)
    expected = run(layer, image.float(), visible, executor)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = run(layer, image, visible, executor)
    torch.testing.assert_close(out.float(), expected, rtol=0.02, atol=0.02)
    assert visible_rows(out, visible).float().std().item() == pytest.approx(1, abs=0.1)


def test_torchs_builtins_take_their_arguments_in_another_order(executor):
    image, visible = example()
    weight, bias, mean = (torch.randn(4, dtype=torch.float64) for _ in range(3))
    var = torch.rand(4, dtype=torch.float64) + 0.5
    for training in (False, True):
        stats, others = (mean.clone(), var.clone()), (mean.clone(), var.clone())
        found, expected = (
            run(call, image, visible, executor)
            for call in (
                lambda x, s=stats, t=training: torch.batch_norm(x, weight, bias, *s, t, 0.2, 1e-4, False),
                lambda x, s=others, t=training: F.batch_norm(x, *s, weight, bias, t, 0.2, 1e-4),
            )
        )
        assert torch.equal(found, expected) and torch.equal(stats[0], others[0])
    found, expected = (
        run(call, image, visible, executor)
        for call in (
            lambda x: torch.instance_norm(x, weight, bias, None, None, True, 0.1, 1e-4, False),
            lambda x: F.instance_norm(x, None, None, weight, bias, True, 0.1, 1e-4),
        )
    )
    assert torch.equal(found, expected)
