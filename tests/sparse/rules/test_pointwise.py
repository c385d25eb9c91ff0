# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""Convolution, activations, sums and channels, on every executor, against loops and plain formulas."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.networks.layers import Act, DropPath
from monai.networks.nets.efficientnet import drop_connect
from torch import nn
from torch.utils.checkpoint import checkpoint

from bundle.sparse import SparseVolume, UnsupportedOperation
from tests.sparse.examples import BLOCK, EXECUTORS, example, run, visible_rows
from tests.sparse.oracle import site_mask, submanifold_conv

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
    mask = site_mask(visible, BLOCK)[:, None]
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
    expected = torch.where(site_mask(visible, BLOCK)[:, None], image, 0.0).sum((2, 3, 4), keepdim=True)
    torch.testing.assert_close(gate.grad, expected)


def test_channels_are_joined_repeated_and_parted(executor):
    image, visible = example()
    volume = SparseVolume.from_dense(image, visible, executor)
    mask = site_mask(visible, BLOCK)[:, None]
    for got, expected in (
        (torch.cat([volume, 2 * volume], dim=1), torch.cat([image, 2 * image], dim=1)),
        (torch.cat((volume, torch.ones_like(image)), 1), torch.cat([image, torch.ones_like(image)], dim=1)),
        (volume.repeat([1, 3, 1, 1, 1]), image.repeat(1, 3, 1, 1, 1)),
        (volume.chunk(2, 1)[1], image[:, 2:]),
        (torch.split(volume, [1, 3], dim=1)[1], image[:, 1:]),
        (F.pad(volume, (0, 0, 0, 0)), image),
        (volume.data, image),
    ):
        assert torch.equal(got.to_dense(), torch.where(mask, expected, 0.0))
    assert [part.channels for part in volume.split(3, dim=1)] == [3, 1]


@pytest.mark.parametrize(("kernel", "low", "high"), [(3, 0, 1), (5, 1, 2), (2, 1, 0)])
def test_uneven_padding_before_a_convolution_is_carried_to_it(executor, kernel, low, high):
    image, visible = example()
    stride = 1 if kernel == 2 else 2
    layer = nn.Sequential(nn.ConstantPad3d((low, high) * 3, 0.0), nn.Conv3d(4, 4, kernel, stride)).double()
    forward = lambda x: run(layer, x, visible, executor)  # noqa: E731
    in_mask, out_mask = (site_mask(visible, tuple(b // s for b in BLOCK)).numpy() for s in (1, stride))
    weight, bias = (p.detach().numpy() for p in layer.parameters())
    expected = submanifold_conv(image.numpy(), in_mask, out_mask, weight, bias, (stride,) * 3, (low,) * 3, (1, 1, 1))
    np.testing.assert_allclose(forward(image).detach().numpy(), expected, rtol=0, atol=1e-12)
    assert torch.autograd.gradcheck(forward, image.requires_grad_(), fast_mode=True)


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


def test_what_has_no_place_on_cells_is_refused(executor):
    volume = SparseVolume.from_dense(*example(), executor)
    for operation, message in (
        (lambda: torch.cat([volume, volume], dim=2), "only along the channels"),
        (lambda: volume.chunk(2, 4), "only along the channels"),
        (lambda: volume.repeat(1, 1, 2, 1, 1), "only its channels"),
        (lambda: volume * torch.ones(1, 4, 8, 1, 1), "1 on each spatial axis"),
        (lambda: F.pad(volume, (1, 1), mode="reflect"), "padded with zeros"),
        (lambda: F.relu(F.pad(volume, (1, 1))), "only a convolution"),
    ):
        with pytest.raises(UnsupportedOperation, match=message):
            operation()


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
