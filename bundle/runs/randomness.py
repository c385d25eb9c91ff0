# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""The state of the random generators of a process, as tensors and plain values that `weights_only=True` reads."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from bundle.ranks import this_rank

__all__ = ["random_state", "restore_random_state"]


def random_state(device: torch.device) -> dict[str, Any]:
    """The states of Python's, numpy's and PyTorch's global generators, and of the GPU's if `device` is one."""
    kind, keys, *position = np.random.get_state()  # noqa: NPY002 - this is the one that libraries draw from
    return {
        "python": random.getstate(),
        "numpy": (kind, torch.from_numpy(np.asarray(keys).astype(np.int64)), *position),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state(device) if device.type == "cuda" else None,
    }


def restore_random_state(states: Sequence[dict[str, Any]], device: torch.device) -> None:
    """Restores this process's generators.

    Args:
        states: one state for each process, by rank. Processes beyond them keep their own.
        device: as for `random_state`.
    """
    rank = this_rank()
    if rank >= len(states):
        return
    state = states[rank]
    version, keys, gauss = state["python"]
    random.setstate((version, tuple(keys), gauss))
    kind, keys, *position = state["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), *position))  # noqa: NPY002
    torch.set_rng_state(state["torch"])
    if state["cuda"] is not None and device.type == "cuda":
        torch.cuda.set_rng_state(state["cuda"], device)
