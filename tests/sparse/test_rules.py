# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""Every rule, on every executor, against plain formulas: convolution by loops, norms on the gathered visible rows."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from bundle.sparse import SparseVolume
from tests.sparse.oracle import site_mask, submanifold_conv

EXECUTORS = sorted(SparseVolume.executors)
BLOCK = (4, 2, 4)


@pytest.fixture(params=EXECUTORS)
def executor(request) -> str:
    return request.param


def example(seed: int = 0, channels: int = 4) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    visible = torch.rand(2, 1, 2, 3, 2, generator=generator) > 0.5
    visible[0, 0, 0, 0, 0] = visible[1, 0, 1, 2, 1] = True
    return torch.randn(2, channels, 8, 6, 8, dtype=torch.float64, generator=generator), visible


def run(layer, image: torch.Tensor, visible: torch.Tensor, executor: str) -> torch.Tensor:
    return layer(SparseVolume.from_dense(image, visible, executor)).to_dense()


CONVOLUTIONS = {
    "3x3x3": dict(kernel_size=3, padding=1),
    "strided": dict(kernel_size=3, padding=1, stride=2),
    "strided without overlap": dict(kernel_size=2, stride=2),
    "strided 1x1x1": dict(kernel_size=1, stride=2),
    "1x1x1 with bias": dict(kernel_size=1, bias=True),
    "bias": dict(kernel_size=3, padding=1, bias=True),
    "wide and dilated": dict(kernel_size=3, padding=2, dilation=2),
    "wider than a block": dict(kernel_size=(3, 7, 3), padding=(1, 3, 1)),
    "anisotropic": dict(kernel_size=(3, 1, 3), padding=(1, 0, 1), stride=(2, 1, 2)),
    "groups": dict(kernel_size=3, padding=1, groups=2),
    "depthwise": dict(kernel_size=5, padding=2, groups=4, bias=True),
    "stride to one site": dict(kernel_size=(5, 3, 5), padding=(2, 1, 2), stride=(4, 2, 4)),
}


@pytest.mark.parametrize("arguments", CONVOLUTIONS.values(), ids=CONVOLUTIONS)
def test_convolution_is_submanifold(executor, arguments):
    image, visible = example()
    torch.manual_seed(1)
    layer = nn.Conv3d(4, 4, **{"bias": False, **arguments}).double()
    out_block = tuple(b // s for b, s in zip(BLOCK, layer.stride))
    expected = submanifold_conv(
        image.numpy(),
        site_mask(visible, BLOCK).numpy(),
        site_mask(visible, out_block).numpy(),
        layer.weight.detach().numpy(),
        None if layer.bias is None else layer.bias.detach().numpy(),
        layer.stride,
        layer.padding,
        layer.dilation,
        layer.groups,
    )
    np.testing.assert_allclose(run(layer, image, visible, executor).detach().numpy(), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("arguments", CONVOLUTIONS.values(), ids=CONVOLUTIONS)
def test_convolution_gradients_are_right_by_finite_differences(executor, arguments):
    image, visible = example()
    layer = nn.Conv3d(4, 4, **{"bias": False, **arguments}).double()
    image.requires_grad_()

    def forward(image, *parameters):
        return run(lambda x: F.conv3d(x, *parameters, *settings_), image, visible, executor)

    parameters = [layer.weight] if layer.bias is None else [layer.weight, layer.bias]
    settings_ = [None] * (layer.bias is None) + [layer.stride, layer.padding, layer.dilation, layer.groups]
    assert torch.autograd.gradcheck(forward, (image, *parameters), fast_mode=True)


def visible_rows(x: torch.Tensor, visible: torch.Tensor, sample: int | None = None) -> torch.Tensor:
    mask = site_mask(visible, BLOCK)
    if sample is not None:
        mask[torch.arange(len(mask)) != sample] = False
    return x.permute(0, 2, 3, 4, 1)[mask]  # [M, C]


def test_batch_norm_is_over_all_visible_sites_and_updates_running_statistics(executor):
    image, visible = example()
    layer = nn.BatchNorm3d(4).double()
    nn.init.normal_(layer.weight), nn.init.normal_(layer.bias)
    out = run(layer, image, visible, executor)
    rows = visible_rows(image, visible)
    normal = (rows - rows.mean(0)) / (rows.var(0, unbiased=False) + layer.eps).sqrt() * layer.weight + layer.bias
    torch.testing.assert_close(visible_rows(out, visible), normal, rtol=0, atol=1e-12)
    assert (out.permute(0, 2, 3, 4, 1)[~site_mask(visible, BLOCK)] == 0).all()
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


def test_a_sample_with_nothing_visible_changes_nothing_for_the_others(executor):
    image, visible = example()
    alone = run(nn.InstanceNorm3d(4).double(), image[1:], visible[1:], executor)
    visible[0] = False
    both = run(nn.InstanceNorm3d(4).double(), image, visible, executor)
    assert torch.equal(both[1:], alone) and (both[0] == 0).all()


POINTWISE = [
    nn.ReLU(),
    nn.ReLU(inplace=True),
    nn.LeakyReLU(0.1),
    nn.LeakyReLU(0.1, inplace=True),
    nn.ELU(),
    nn.GELU(),
    nn.SiLU(),
    nn.Mish(),
    nn.Sigmoid(),
    nn.Softplus(),
    nn.Identity(),
]


@pytest.mark.parametrize("layer", POINTWISE, ids=str)
def test_activations_act_on_visible_sites_and_leave_the_rest_absent(executor, layer):
    image, visible = example()
    out = run(layer, image.clone(), visible, executor)
    mask = site_mask(visible, BLOCK)[:, None]
    assert torch.equal(out, torch.where(mask, layer(image.clone()), 0.0))


def test_sums_and_products_with_volumes_and_numbers(executor):
    image, visible = example()
    volume = SparseVolume.from_dense(image, visible, executor)
    mask = site_mask(visible, BLOCK)[:, None]
    for got, expected in (
        (volume + volume, 2 * image),
        (volume + 1, image + 1),
        (2 * volume, 2 * image),
        (volume * volume, image * image),
        (torch.add(volume, volume, alpha=3), 4 * image),
    ):
        assert torch.equal(got.to_dense(), torch.where(mask, expected, 0.0))
    volume += volume
    assert torch.equal(volume.to_dense(), torch.where(mask, 2 * image, 0.0))


def test_average_pooling_within_a_cell_is_the_plain_mean(executor):
    image, visible = example()
    out = run(nn.AvgPool3d((2, 1, 4)), image, visible, executor)
    mask = site_mask(visible, (2, 2, 1))[:, None]
    expected = image.unflatten(4, (2, 4)).unflatten(2, (4, 2)).mean((3, 6))
    torch.testing.assert_close(out, torch.where(mask, expected, 0.0))


@st.composite
def _cases(draw):
    grid = draw(st.tuples(*[st.integers(1, 3)] * 3))
    block = draw(st.tuples(*[st.sampled_from([1, 2, 4])] * 3))
    stride = tuple(draw(st.sampled_from([s for s in (1, 2, 4) if b % s == 0])) for b in block)
    kernel = draw(st.tuples(*[st.sampled_from([1, 3, 5])] * 3))
    return grid, block, stride, kernel, draw(st.integers(1, 3)), draw(st.integers(0, 2**31))


@settings(max_examples=40, deadline=None)
@given(_cases())
def test_executors_agree_on_any_geometry(case):
    grid, block, stride, kernel, batch, seed = case
    torch.manual_seed(seed)
    visible = torch.rand(batch, 1, *grid) > torch.rand(()).item()
    visible.view(-1)[torch.randint(visible.numel(), ())] = True  # one cell, all cells or none in a sample: all occur
    image = torch.randn(batch, 2, *(g * b for g, b in zip(grid, block)), dtype=torch.float64)
    layer = nn.Conv3d(2, 3, kernel, stride, tuple(k // 2 for k in kernel)).double()
    results = []
    for executor in EXECUTORS:
        x = image.clone().requires_grad_()
        layer.zero_grad()
        out = run(nn.Sequential(layer, nn.InstanceNorm3d(3, affine=True).double(), nn.ELU()), x, visible, executor)
        weights = torch.randn(out.shape, dtype=out.dtype, generator=torch.Generator().manual_seed(seed))
        (out * weights).sum().backward()
        results.append([out.detach(), x.grad, layer.weight.grad.clone(), layer.bias.grad.clone()])
    for other in results[1:]:
        for a, b in zip(results[0], other):
            torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)
