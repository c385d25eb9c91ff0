# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""bundle/sparse/recompute.py: activation checkpointing of volumes is as right as that of tensors, or an error."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from bundle.networks.encoders.encoder import Encoder, Stage
from bundle.sparse import SparseVolume, checkpoint_volumes
from tests.sparse.examples import example

WRITTEN = "modified by an inplace operation"


def block() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv3d(4, 6, 3, padding=1), nn.InstanceNorm3d(6), nn.ReLU(), nn.Conv3d(6, 4, 3, padding=1)
    ).double()


def gradients(loss: Tensor, *leaves: Tensor) -> list[Tensor]:
    return list(torch.autograd.grad(loss, leaves))


def test_values_and_gradients_are_those_without_it(executor: str):
    image, visible = example()
    layer, found = block(), []
    for checkpointed in (False, True):
        leaf = image.clone().requires_grad_()
        x = SparseVolume.from_dense(leaf, visible, executor)
        scale = torch.tensor(2.0, dtype=torch.float64, requires_grad=True)

        def two(a: SparseVolume, b: Tensor, times: int) -> SparseVolume:
            return layer(a) * b * times

        y = checkpoint_volumes(two, x, scale, 3) if checkpointed else two(x, scale, 3)
        loss = (y + x).to_dense().square().sum()
        found.append([loss.detach(), *gradients(loss, leaf, scale, *layer.parameters())])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def test_an_input_that_is_written_in_place_later_is_an_error_as_dense(executor: str):
    image, visible = example()
    layer, one = block(), torch.ones(1, dtype=torch.float64, requires_grad=True)
    for is_sparse in (False, True):
        x = SparseVolume.from_dense(image * one, visible, executor) if is_sparse else image * one
        total = checkpoint_volumes(layer, x) + x.add_(1.0)
        loss = total.to_dense() if is_sparse else total
        with pytest.raises(RuntimeError, match=WRITTEN):
            loss.square().sum().backward()


def test_a_level_that_begins_in_place_cannot_be_recomputed_in_silence(executor: str):
    torch.manual_seed(0)

    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Conv3d(4, 4, 3, padding=1)
            self.second = nn.Sequential(nn.LeakyReLU(0.1, inplace=True), nn.Conv3d(4, 4, 3, 2, 1))

    network = Network().double()
    encoder = Encoder(network, [Stage((network.first,), 4, (1, 1, 1)), Stage((network.second,), 4, (2, 2, 2))])
    image, visible = example()
    features = encoder(SparseVolume.from_dense(image, visible, executor), recompute=2)
    with pytest.raises(RuntimeError, match=WRITTEN):
        sum(level.to_dense().square().sum() for level in features).backward()
