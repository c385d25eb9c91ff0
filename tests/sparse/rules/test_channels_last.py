# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""Channels on the last axis: what a block does there to single sites, as ConvNeXt does, equals the dense block."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from bundle.sparse import SparseVolume, UnsupportedOperation
from tests.sparse.examples import CELL_SHAPE, EXECUTORS, example, visible_rows
from tests.sparse.oracle import site_mask


class ConvNeXtBlock(nn.Module):
    """As published, in 3D: depthwise 7x7x7; LayerNorm, Linear, GELU, Linear and a scale over the channels."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv3d(channels, channels, 7, padding=3, groups=channels)
        self.norm = nn.LayerNorm(channels, eps=1e-6)
        self.wide = nn.Linear(channels, 4 * channels)
        self.narrow = nn.Linear(4 * channels, channels)
        self.scale = nn.Parameter(torch.rand(channels))

    def forward(self, x):
        y = self.depthwise(x).permute(0, 2, 3, 4, 1)
        y = self.scale * self.narrow(nn.functional.gelu(self.wide(self.norm(y))))
        return x + y.permute(0, 4, 1, 2, 3)


@pytest.mark.parametrize("executor", [*EXECUTORS, "minkowski"])
def test_a_convnext_block_equals_the_dense_one_on_zeros_at_visible_sites(executor):
    torch.manual_seed(0)
    image, visible = example()
    block = ConvNeXtBlock(4).double()
    if executor == "minkowski":  # which has no depthwise convolution
        block.depthwise = nn.Conv3d(4, 4, 3, padding=1).double()
    mask = site_mask(visible, CELL_SHAPE)[:, None]
    sparse_image, dense_image = image.clone().requires_grad_(), image.clone().requires_grad_()
    expected = block(dense_image * mask) * mask
    goal = torch.randn_like(expected)
    (expected * goal).sum().backward()
    gradients = [p.grad.clone() for p in block.parameters()]
    block.zero_grad()
    out = block(SparseVolume.from_dense(sparse_image, visible, executor)).to_dense()
    (out * goal).sum().backward()
    torch.testing.assert_close(out, expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(sparse_image.grad, dense_image.grad, rtol=1e-12, atol=1e-12)
    for (name, p), gradient in zip(block.named_parameters(), gradients):
        torch.testing.assert_close(p.grad, gradient, rtol=1e-12, atol=1e-11, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("executor", EXECUTORS)
def test_shape_sums_and_a_map_beside_it_are_those_of_the_dense_tensor(executor):
    image, visible = example()
    beside = torch.randn(*image.shape[2:], image.shape[1], dtype=torch.float64)
    volume = SparseVolume.from_dense(image, visible, executor)
    last, dense = volume.movedim(1, -1), image.movedim(1, -1)
    assert last.shape == dense.shape and last.size(-1) == dense.size(-1) and last.ndim == 5
    assert (last.dtype, last.device) == (dense.dtype, dense.device)
    assert len(last) == len(volume) == len(dense)
    for change in (
        lambda x: 2 * x + x,
        lambda x: 1 - abs(-x) / 2,
        lambda x: (x - 1) ** 2,
        lambda x: x.relu() * beside,
        lambda x: torch.sigmoid(x) + beside[0, 0, 0],
    ):
        out = torch.movedim(change(last), -1, 1).to_dense()
        expected = visible_rows(change(dense).movedim(-1, 1), visible)
        torch.testing.assert_close(visible_rows(out, visible), expected, rtol=0, atol=1e-12)
    assert (out.movedim(1, -1)[~site_mask(visible, CELL_SHAPE)] == 0).all()


def test_what_cannot_be_done_there_says_so():
    volume = SparseVolume.from_dense(*example())
    last = volume.permute(0, 2, 3, 4, 1)
    with pytest.raises(UnsupportedOperation, match=r"permute \[0, 1, 2, 4, 3\].*only its channels"):
        volume.permute(0, 1, 2, 4, 3)
    with pytest.raises(UnsupportedOperation, match="permute"):
        last.permute(0, 2, 3, 4, 1)
    with pytest.raises(UnsupportedOperation, match="only over the channels"):
        nn.LayerNorm([8, 4]).double()(last)
    with pytest.raises(UnsupportedOperation, match=r"no sparse rule for 'softmax'.*channels_last\.py"):
        last.softmax(-1)
    with pytest.raises(UnsupportedOperation, match="'prelu'"):  # whose weights belong to axis 1
        nn.PReLU(4).double()(last)
