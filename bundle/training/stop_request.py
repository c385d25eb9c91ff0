# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""A scheduler's signal, and the time since the last checkpoint: what all processes must act on in the same step."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from types import FrameType
from typing import Any, NamedTuple

import torch
import torch.distributed as dist

from bundle.cells import send
from bundle.errors import Terminated
from bundle.ranks import world_size
from bundle.runs.distributed import is_main_rank
from bundle.runs.watch import told_to_end

__all__ = ["StopRequest", "Wanted"]

#: what Slurm and others send before they take the machine away, and what torchrun hands on
_SIGNALS = (signal.SIGTERM, signal.SIGUSR1)
#: seconds in which further signals are echoes of the first: the scheduler and torchrun may each send one
_ECHO = 10.0


class Wanted(NamedTuple):
    """What is to be done after a step: write a checkpoint, and end the run. Of all processes alike."""

    save: bool
    stop: bool


class StopRequest:
    """Notes SIGTERM and SIGUSR1 while a training runs, and when the next checkpoint by time is due.

    A signal may reach one process only, or the processes in different steps. So after every step all processes agree on
    what to do, with one small message; the clock is that of the first one. On GPUs they act on the message of the step
    before, so that the host waits for that step only, and queues the next one in the meantime. Another signal, at least
    10 s after the first, ends the process at once.

    Args:
        save_minutes: time between two checkpoints, in minutes; None asks for none by time.
    """

    def __init__(self, save_minutes: float | None = None) -> None:
        self.save_minutes = save_minutes
        self.received: signal.Signals | None = None
        self._previous: dict[signal.Signals, Any] = {}
        self._saved = self._since = time.monotonic()
        self._pending: Callable[[], list[int]] | None = None
        self._process = os.getpid()

    def start(self) -> None:
        """Takes the signals, in the main thread. Every process must call it."""
        told_to_end.clear()
        self.received, self._saved, self._pending = None, time.monotonic(), None
        if threading.current_thread() is threading.main_thread():
            self._previous = {number: signal.signal(number, self._note) for number in _SIGNALS}

    def end(self, *, deaf: bool = False) -> None:
        """Gives the signals back.

        Args:
            deaf: ignores further ones instead: the run is ending already, and torchrun sends another to each process.
        """
        for number, handler in self._previous.items():
            signal.signal(number, signal.SIG_IGN if deaf else handler)
        self._previous = {}

    def agree(self) -> Wanted:
        """What all processes do after this step. Every one must call it."""
        minutes = (time.monotonic() - self._saved) / 60
        due = is_main_rank() and self.save_minutes is not None and minutes >= self.save_minutes
        if due:
            self._saved = time.monotonic()
        save, stop = due, self.received is not None
        if world_size() > 1:
            save, stop = self._exchange(save, stop)
        return Wanted(save or stop, stop)

    def _exchange(self, save: bool, stop: bool) -> tuple[bool, bool]:
        """What any process wants, now or, on GPUs, in the step before."""
        cuda = dist.get_backend() == "nccl"
        wanted = torch.tensor([int(save), int(stop)])
        if cuda:
            wanted = send(wanted, torch.device("cuda"))
        dist.all_reduce(wanted, dist.ReduceOp.MAX)
        if cuda:
            before, self._pending = self._pending, _copy(wanted)
            found = [0, 0] if before is None else before()
        else:
            found = wanted.tolist()
        return bool(found[0]), bool(found[1])

    def saved(self) -> None:
        """A checkpoint was written just now."""
        self._saved = time.monotonic()

    def wait_for_all(self) -> None:
        """Returns when all processes are here: none ends while another one still writes."""
        if world_size() > 1:
            dist.barrier()

    def _note(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002 - the signature of a handler
        now = time.monotonic()
        told_to_end.set()
        if self.received is None:
            self.received, self._since = signal.Signals(number), now
        elif now - self._since < _ECHO:
            pass  # a forked loading process goes on, too: the step needs its crops
        elif os.getpid() == self._process:
            raise Terminated
        else:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)


def _copy(values: torch.Tensor) -> Callable[[], list[int]]:
    """Begins to copy from the GPU. What it returns waits for the copy, not for what is queued after it."""
    host = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
    host.copy_(values, non_blocking=True)
    copied = torch.cuda.Event()
    copied.record()

    def read() -> list[int]:
        copied.synchronize()
        return [int(value) for value in host]

    return read
