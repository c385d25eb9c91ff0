# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from bundle.networks import reestimate_batch_norm


def network() -> nn.Sequential:
    torch.manual_seed(0)
    layers = nn.Sequential(
        nn.Conv3d(1, 3, 1), nn.BatchNorm3d(3), nn.Dropout(0.5), nn.Conv3d(3, 2, 1), nn.BatchNorm3d(2)
    )
    for layer in (layers[1], layers[4]):
        layer.running_mean.fill_(7)
        layer.running_var.fill_(9)
    return layers


def images() -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [scale * torch.randn(2, 1, 4, 4, 4, generator=generator) + scale for scale in (1.0, 2.0, 5.0)]


def test_statistics_become_the_plain_average_over_the_batches():
    net = network()
    assert reestimate_batch_norm(net, images()) == 2
    first, second = [], []
    for image in images():  # by formula, without a mode
        x = net[0](image)
        mean, var = x.mean((0, 2, 3, 4)), x.var((0, 2, 3, 4), unbiased=True)
        first.append((mean, var))
        normed = (x - mean.view(1, -1, 1, 1, 1)) / (
            x.var((0, 2, 3, 4), unbiased=False).view(1, -1, 1, 1, 1) + 1e-5
        ).sqrt()
        y = net[3](normed)  # dropout is off
        second.append((y.mean((0, 2, 3, 4)), y.var((0, 2, 3, 4), unbiased=True)))
    for layer, expected in ((net[1], first), (net[4], second)):
        mean, var = (torch.stack(values).mean(0) for values in zip(*expected, strict=True))
        assert torch.allclose(layer.running_mean, mean, atol=1e-5)
        assert torch.allclose(layer.running_var, var, rtol=1e-4)


def test_all_else_stays_as_it_was():
    net = network()
    net[2].eval()
    parameters = [parameter.detach().clone() for parameter in net.parameters()]
    reestimate_batch_norm(net, images())
    assert [module.training for module in net] == [True, True, False, True, True]
    assert net[1].momentum == 0.1 and not net[1]._forward_pre_hooks
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), parameters))


def test_a_failure_leaves_no_hook_behind():
    def broken() -> Iterator[Tensor]:
        yield images()[0]
        raise OSError

    net = network()
    with pytest.raises(OSError):  # noqa: PT011 - its own
        reestimate_batch_norm(net, broken())
    assert net[1].momentum == 0.1 and net[1].training and not net[1]._forward_pre_hooks


def test_without_batch_norm_no_batch_is_drawn():
    def drawn() -> Iterator[Tensor]:
        raise AssertionError
        yield

    assert reestimate_batch_norm(nn.Sequential(nn.Conv3d(1, 1, 1), nn.InstanceNorm3d(1)), drawn()) == 0
