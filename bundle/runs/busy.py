# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""Says when other programs keep the cores busy that this process is about to compute on."""

from __future__ import annotations

import logging
import os
import time
from pathlib import Path

import torch

__all__ = ["busy_cores", "warn_of_busy_cores"]

logger = logging.getLogger(__name__)

#: what the kernel has counted since the system started, one line for each core
_COUNTS = Path("/proc/stat")
#: what tells libgomp to spin for a short time only, or not at all
_WAYS_TO_WAIT = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")
#: cores of others below which nothing is said: editors and browsers take that much now and then
_UNNOTICED = 0.5


def busy_cores(seconds: float = 0.3) -> tuple[float, int] | None:
    """How many cores' time is in use, by whom ever, and how many cores there are.

    Args:
        seconds: in which it is measured, while this thread sleeps.

    Returns:
        The cores in use, such as 1.2, and the cores of the machine; None where the system does not tell.
    """
    before = _ticks()
    time.sleep(seconds)
    after = _ticks()
    if before is None or after is None or len(before) != len(after):
        return None
    pairs = zip(after, before, strict=True)
    in_use = sum((used - used_then) / max(total - total_then, 1) for (used, total), (used_then, total_then) in pairs)
    return in_use, len(after)


def warn_of_busy_cores() -> bool:
    """Warns where OpenMP's threads will share their cores with other programs, and spin while they wait.

    A thread that spins keeps a core from the thread that it waits for: a step then takes up to twenty times as long.
    libgomp reads how to wait when torch is loaded, so all that can be done here is to say so. Nothing is said where the
    user has chosen how to wait, and under torchrun, where the others are processes of the same run.

    Returns:
        Whether it warned.
    """
    threads = torch.get_num_threads()
    chosen = any(name in os.environ for name in _WAYS_TO_WAIT)
    if threads == 1 or chosen or int(os.environ.get("WORLD_SIZE", "1")) > 1:
        return False
    busy = busy_cores()
    if busy is None or busy[0] < _UNNOTICED or busy[0] + threads < busy[1] + _UNNOTICED:
        return False
    logger.warning(
        "other programs keep %.1f of %d cores busy, which can make a step of %d threads many times as slow: put"
        " GOMP_SPINCOUNT=1000 before the command, or OMP_NUM_THREADS=%d",
        *busy,
        threads,
        max(1, busy[1] - round(busy[0])),
    )
    return True


def _ticks() -> list[tuple[int, int]] | None:
    """Of each core the ticks in use and in all."""
    try:
        lines = _COUNTS.read_text().splitlines()
    except OSError:
        return None
    cores = [line for line in lines if line.startswith("cpu") and not line.startswith("cpu ")]
    counts = [[int(number) for number in line.split()[1:9]] for line in cores]
    return [(sum(each) - sum(each[3:5]), sum(each)) for each in counts]  # less idle and waiting for a disk
