# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""Gradient checkpointing of a part of an encoder."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from bundle.sparse.recompute import checkpoint_volumes

__all__ = ["checkpointed", "run"]


def run(modules: Sequence[nn.Module], x: Any) -> Any:
    """The modules one after the other."""
    for module in modules:
        x = module(x)
    return x


def checkpointed(modules: Sequence[nn.Module], x: Any) -> Any:
    """As `run`, with nothing kept for the backward pass but `x`: the modules then run a second time."""

    def contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        return nullcontext(), _statistics_kept(modules)

    return checkpoint_volumes(partial(run, modules), x, context_fn=contexts)


@contextmanager
def _statistics_kept(modules: Sequence[nn.Module]) -> Iterator[None]:
    """Leaves BatchNorm's running statistics as they are: the first run has counted this batch already."""
    norms = [m for module in modules for m in module.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
    momenta = [norm.momentum for norm in norms]
    counts = [None if norm.num_batches_tracked is None else norm.num_batches_tracked.clone() for norm in norms]
    for norm in norms:
        norm.momentum = 0.0
    try:
        yield
    finally:
        for norm, momentum, count in zip(norms, momenta, counts):
            norm.momentum = momentum
            if count is not None and norm.num_batches_tracked is not None:
                norm.num_batches_tracked.copy_(count)
