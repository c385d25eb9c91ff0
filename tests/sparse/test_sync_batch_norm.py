# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""Two processes on gloo stand for two GPUs; what they compute together is BatchNorm over both their batches."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import nn

from bundle.runs import stop_distributed
from bundle.sparse import SparseVolume, sync_over_visible_sites
from tests.commands import run_processes
from tests.sparse.examples import EXECUTORS


def both_batches() -> tuple[torch.Tensor, torch.Tensor]:
    """A batch of four, of which each process has two; they see unequal numbers of sites."""
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(4, 3, 4, 4, 4, dtype=torch.float64, generator=generator)
    visible = torch.rand(4, 1, 2, 2, 2, generator=generator) > 0.5
    visible[:2] = True
    visible[2, 0, 0, 0, 0] = True
    return image, visible


def weights(image: torch.Tensor) -> torch.Tensor:
    return torch.arange(image.numel(), dtype=image.dtype).view(image.shape).sin()


def forward_backward(layer, image, visible, weight, executor: str) -> dict[str, torch.Tensor]:
    image = image.clone().requires_grad_()
    out = layer(SparseVolume.from_dense(image, visible, executor)).to_dense()
    (out * weight).sum().backward()
    gradients = {f"{name}.grad": p.grad for name, p in layer.named_parameters()}
    return {"out": out.detach(), "image.grad": image.grad, **gradients, **layer.state_dict()}


def process(rank: int, port: int, results: Path) -> None:
    os.environ.update(RANK=str(rank), WORLD_SIZE="2", MASTER_ADDR="localhost", MASTER_PORT=str(port))
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    image, visible = both_batches()
    mine = slice(2 * rank, 2 * rank + 2)
    for executor in EXECUTORS:
        layer = nn.Sequential(nn.SyncBatchNorm(3)).double()
        sync_over_visible_sites(layer)
        found = forward_backward(layer, image[mine], visible[mine], weights(image)[mine], executor)
        torch.save(found, results / f"{executor}{rank}.pt")
    stop_distributed()


@pytest.fixture(scope="module")
def results(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("ranks")
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    run_processes(process, port, folder)
    return folder


def test_it_is_batch_norm_over_the_visible_sites_of_all_processes(executor, results):
    first, second = (torch.load(results / f"{executor}{rank}.pt", weights_only=True) for rank in range(2))
    image, visible = both_batches()
    layer = nn.Sequential(nn.BatchNorm3d(3)).double()
    expected = forward_backward(layer, image, visible, weights(image), executor)
    assert first.keys() == second.keys() == expected.keys()
    for name, value in expected.items():
        if name in {"out", "image.grad"}:
            found = torch.cat([first[name], second[name]])
        elif name.endswith(".grad"):
            found = first[name] + second[name]  # DistributedDataParallel averages them
        else:
            found = first[name]
            assert torch.equal(found, second[name])
        torch.testing.assert_close(found, value, rtol=1e-12, atol=1e-12, msg=name)


def test_a_single_site_in_the_only_process_is_refused_as_torch_does(executor, tmp_path):
    visible = torch.zeros(1, 1, 2, 2, 2, dtype=torch.bool)
    visible[..., 0, 0] = True
    layer = nn.Sequential(nn.SyncBatchNorm(3)).double()
    sync_over_visible_sites(layer)
    dist.init_process_group("gloo", init_method=f"file://{tmp_path / 'meeting'}", rank=0, world_size=1)
    try:
        two = layer(SparseVolume.from_dense(torch.randn(1, 3, 2, 2, 2, dtype=torch.float64), visible, executor))
        visible[..., 0, 0, 0] = False
        one = SparseVolume.from_dense(torch.randn(1, 3, 2, 2, 2, dtype=torch.float64), visible, executor)
        with pytest.raises(ValueError, match="Expected more than 1 value per channel when training"):
            layer(one)
    finally:
        stop_distributed()
    assert two.to_dense().isfinite().all() and layer[0].running_var.isfinite().all()
