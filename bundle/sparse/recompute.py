# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""Activation checkpointing of what runs on sparse volumes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch.utils.checkpoint import checkpoint

from bundle.sparse.volume import SparseVolume

__all__ = ["checkpoint_volumes"]


def checkpoint_volumes(function: Callable[..., Any], *inputs: Any, **options: Any) -> Any:
    """As torch's `checkpoint` without reentrance, for inputs that may be sparse volumes, dense tensors or both.

    torch looks for tensors among the inputs, to see in the backward pass whether one was written in place since. In a
    volume it finds none, and would compute wrong gradients without a word. Here it is given the volumes' features.

    Args:
        function: of the inputs; it runs again in the backward pass.
        inputs: sparse volumes, tensors and others.
        options: further ones of `torch.utils.checkpoint.checkpoint`, such as `context_fn`.

    Returns:
        What `function` returns.

    Raises:
        RuntimeError: in the backward pass, if an input was written in place after this call, or by the function.

    Example:
        >>> import torch
        >>> from bundle.sparse import SparseVolume, checkpoint_volumes
        >>> layer = torch.nn.Conv3d(1, 4, 3, padding=1)
        >>> volume = SparseVolume.from_dense(torch.rand(1, 1, 8, 8, 8), torch.rand(1, 1, 2, 2, 2) < 2)
        >>> checkpoint_volumes(layer, volume).shape
        torch.Size([1, 4, 8, 8, 8])
    """
    again = [one._like if isinstance(one, SparseVolume) else None for one in inputs]  # noqa: SLF001 - of this package
    tensors = [one.features if isinstance(one, SparseVolume) else one for one in inputs]

    def of_tensors(*given: Any) -> Any:
        return function(*(one if like is None else like(one) for like, one in zip(again, given, strict=True)))

    return checkpoint(of_tensors, *tensors, use_reentrant=False, **options)
