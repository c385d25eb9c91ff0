# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""Which of the processes that torchrun started this one is; without torchrun it is the first of one."""

from __future__ import annotations

import torch.distributed as dist

__all__ = ["is_distributed", "this_rank", "world_size"]


def is_distributed() -> bool:
    """Whether this process has joined a process group, so that it can exchange tensors with others."""
    return dist.is_available() and dist.is_initialized()


def this_rank() -> int:
    """The number of this process, from 0 on."""
    return dist.get_rank() if is_distributed() else 0


def world_size() -> int:
    """The number of processes."""
    return dist.get_world_size() if is_distributed() else 1
