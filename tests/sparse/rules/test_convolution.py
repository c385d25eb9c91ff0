# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""Convolution, on every executor, against loops and finite differences."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from bundle.sparse import SparseVolume, UnsupportedOperation
from tests.sparse.examples import CELL_SHAPE, EXECUTORS, example, run
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
    out_shape = tuple(b // s for b, s in zip(CELL_SHAPE, layer.stride))
    expected = submanifold_conv(
        image.numpy(),
        site_mask(visible, CELL_SHAPE).numpy(),
        site_mask(visible, out_shape).numpy(),
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


def test_a_volume_keeps_its_dtype_under_a_stride_and_its_cells_shrink():
    image, visible = example()
    volume = SparseVolume.from_dense(image, visible)
    out = F.conv3d(volume, torch.randn(5, 4, 3, 3, 3, dtype=torch.float64), None, 2, 1)
    assert out.cell_shape == (2, 1, 2)
    assert out.dtype == torch.float64


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        (nn.Conv3d(4, 4, kernel_size=(1, 3, 1), stride=(1, 3, 2)), "does not divide a cell"),
        (nn.Conv3d(4, 4, kernel_size=3), "moves the map off its cells"),
    ],
)
def test_a_convolution_that_leaves_the_cells_is_refused(executor, layer, message):
    with pytest.raises(UnsupportedOperation, match=message):
        run(layer.double(), *example(), executor)


@st.composite
def _cases(draw):
    grid = draw(st.tuples(*[st.integers(1, 3)] * 3))
    cell_shape = draw(st.tuples(*[st.sampled_from([1, 2, 4])] * 3))
    stride = tuple(draw(st.sampled_from([s for s in (1, 2, 4) if b % s == 0])) for b in cell_shape)
    kernel = draw(st.tuples(*[st.sampled_from([1, 3, 5])] * 3))
    return grid, cell_shape, stride, kernel, draw(st.integers(1, 3)), draw(st.integers(0, 2**31))


@settings(max_examples=40)
@given(_cases())
def test_executors_agree_on_any_geometry(case):
    grid, cell_shape, stride, kernel, batch, seed = case
    torch.manual_seed(seed)
    visible = torch.rand(batch, 1, *grid) > torch.rand(()).item()
    visible.view(-1)[torch.randint(visible.numel(), ())] = True  # one cell, all cells or none in a sample: all occur
    image = torch.randn(batch, 2, *(g * b for g, b in zip(grid, cell_shape)), dtype=torch.float64)
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


@pytest.mark.parametrize("kernel", [2, 3, (4, 3, 2)])
def test_same_padding_of_even_kernels_is_torchs(executor, kernel):
    image, visible = example()
    layer = nn.Conv3d(4, 3, kernel, padding="same").double()
    everything = torch.ones_like(visible)
    torch.testing.assert_close(run(layer, image, everything, executor), layer(image), rtol=0, atol=1e-12)


@pytest.mark.parametrize(("stride", "padding"), [(2, "same"), ((1, 2, 1), "same"), (1, "foo")])
def test_a_padding_that_torch_refuses_is_refused(executor, stride, padding):
    image, visible = example()
    weight = torch.randn(4, 4, 3, 3, 3, dtype=torch.float64)
    for x in (image, SparseVolume.from_dense(image, visible, executor)):
        with pytest.raises(RuntimeError, match="padding"):
            F.conv3d(x, weight, None, stride, padding)
