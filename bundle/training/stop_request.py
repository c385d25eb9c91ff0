# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""A scheduler's signal, and the time since the last checkpoint: what all processes must act on in the same step."""

from __future__ import annotations

import os
import signal
import threading
import time
from types import FrameType
from typing import Any, NamedTuple

import torch
import torch.distributed as dist

from bundle.errors import Terminated
from bundle.runs.distributed import is_main_rank

__all__ = ["StopRequest", "Wanted"]

#: what Slurm and others send before they take the machine away, and what torchrun hands on
_SIGNALS = (signal.SIGTERM, signal.SIGUSR1)


class Wanted(NamedTuple):
    """What is to be done after a step: write a checkpoint, and end the run. Of all processes alike."""

    save: bool
    stop: bool


class StopRequest:
    """Notes SIGTERM and SIGUSR1 while a training runs, and when the next checkpoint by time is due.

    A signal may reach one process only, or the processes in different steps. So after every step all processes agree on
    what to do, with one small message; the clock is that of the first one. The message goes over gloo, so that no GPU
    is waited for. A second signal of the same kind ends the process at once.

    Args:
        save_minutes: time between two checkpoints, in minutes; None asks for none by time.
    """

    def __init__(self, save_minutes: float | None = None) -> None:
        self.save_minutes = save_minutes
        self.received: signal.Signals | None = None
        self._previous: dict[signal.Signals, Any] = {}
        self._saved = time.monotonic()
        self._group: Any = None
        self._process = os.getpid()

    def start(self) -> None:
        """Takes the signals, in the main thread. Every process must call it."""
        self.received, self._saved = None, time.monotonic()
        if threading.current_thread() is threading.main_thread():
            self._previous = {number: signal.signal(number, self._note) for number in _SIGNALS}
        if _several() and dist.get_backend() != "gloo":
            self._group = dist.new_group(backend="gloo")

    def end(self, *, deaf: bool = False) -> None:
        """Gives the signals back.

        Args:
            deaf: ignores further ones instead: the run is ending already, and torchrun sends another to each process.
        """
        for number, handler in self._previous.items():
            signal.signal(number, signal.SIG_IGN if deaf else handler)
        self._previous, self._group = {}, None

    def agree(self) -> Wanted:
        """What all processes do after this step. Every one must call it."""
        minutes = (time.monotonic() - self._saved) / 60
        due = is_main_rank() and self.save_minutes is not None and minutes >= self.save_minutes
        save, stop = due, self.received is not None
        if _several():
            wanted = torch.tensor([int(save), int(stop)])
            dist.all_reduce(wanted, dist.ReduceOp.MAX, group=self._group)
            save, stop = (bool(value) for value in wanted.tolist())
        return Wanted(save or stop, stop)

    def saved(self) -> None:
        """A checkpoint was written just now."""
        self._saved = time.monotonic()

    def wait_for_all(self) -> None:
        """Returns when all processes are here: none ends while another one still writes."""
        if _several():
            dist.all_reduce(torch.zeros(1), group=self._group)

    def _note(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002 - the signature of a handler
        if self.received != number:
            self.received = signal.Signals(number)  # a forked loading process goes on: the step needs its crops
        elif os.getpid() == self._process:
            raise Terminated
        else:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)


def _several() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
