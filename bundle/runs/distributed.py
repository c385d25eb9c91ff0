# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""One process per GPU under torchrun, or a single one: the same config serves both."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterable
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from bundle.ranks import is_distributed, this_rank, world_size
from bundle.runs.watch import Watch

__all__ = [
    "broadcast",
    "broadcast_buffers",
    "gather",
    "is_main_rank",
    "start_distributed",
    "stop_distributed",
    "unwrap",
    "wrap",
]

#: the default of 10 minutes is over while one process prepares volumes; `Watch` notices much earlier that one is dead
_PATIENCE = timedelta(hours=12)
_watches: list[Watch] = []


def start_distributed(device: torch.device) -> None:
    """Joins the process group that torchrun describes in the environment (WORLD_SIZE > 1); else does nothing.

    May be called again. The backend is NCCL for GPUs, else gloo. A process waits half a day for the others: one may
    have to prepare larger volumes than they. When one of them dies, all end within a minute: see `Watch`.
    """
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and not dist.is_initialized():
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=_PATIENCE)
        if dist.is_initialized():
            _watches.append(Watch.connect())
            _watches[0].start()


def stop_distributed() -> None:
    """Leaves the process group, if this process is in one. All must call it; they end together.

    Gloo's threads live until the process ends, and take Python's lock to let go of the tensors of the last exchange.
    A thread that does so while the interpreter shuts down aborts the process (pytorch/pytorch#179291 tells how), so
    they are given the time before.
    """
    if is_distributed():
        if dist.get_backend() == "gloo":
            _let_threads_finish()
        while _watches:
            _watches.pop().stop()
        dist.destroy_process_group()


def _let_threads_finish(patience: float = 10.0) -> None:
    """Waits until gloo's threads hold no tensor: several exchanges at once, so that each thread ends one."""
    tensors = [torch.zeros(1) for _ in range(8)]
    before = [sys.getrefcount(tensor) for tensor in tensors]
    exchanges = [dist.all_reduce(tensor, async_op=True) for tensor in tensors]
    while exchanges:
        exchanges.pop().wait()  # no name is left for one: it would hold its tensor, too
    end = time.monotonic() + patience
    while [sys.getrefcount(tensor) for tensor in tensors] != before and time.monotonic() < end:
        time.sleep(0.01)
    time.sleep(0.1)  # a thread may not yet have come to an older exchange's tensors


def is_main_rank() -> bool:
    """Whether this process is the one that logs and writes files."""
    return this_rank() == 0


def gather(value: Any) -> list[Any]:
    """What every process passes (anything that can be pickled), in the order of their ranks. All must call it."""
    if not is_distributed():
        return [value]
    values: list[Any] = [None] * world_size()
    dist.all_gather_object(values, value)
    return values


def broadcast(network: nn.Module) -> None:
    """Gives every process the weights of rank 0. All must call it."""
    _broadcast(network.state_dict().values())


def broadcast_buffers(network: nn.Module) -> None:
    """Gives every process the buffers of rank 0, such as BatchNorm's running statistics. All must call it."""
    _broadcast(network.buffers())


def _broadcast(tensors: Iterable[Tensor]) -> None:
    if is_distributed():
        for tensor in tensors:
            dist.broadcast(tensor, src=0)


def wrap(network: nn.Module, device: torch.device) -> nn.Module:
    """Moves the network to the device and, with several processes, averages its gradients over them (DDP).

    BatchNorm statistics stay those of each process's own crops, and each forward starts from rank 0's running averages.
    Every process validates these, too, by `SameBuffers` (bundle/training). With few crops per GPU choose instance or
    group norm, or an encoder with `SyncBatchNorm`, which counts visible sites over all processes.

    Give the trainer this network, and the evaluator the unwrapped one: ranks may validate unequal numbers of batches,
    and DDP's forward waits for all ranks.
    """
    network = network.to(device)
    if world_size() == 1:
        return network
    return DistributedDataParallel(network, device_ids=[device] if device.type == "cuda" else None)


def unwrap(network: nn.Module) -> nn.Module:
    """The network itself, whose parameter names have no prefix from DDP."""
    return network.module if isinstance(network, DistributedDataParallel) else network
