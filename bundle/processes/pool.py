# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""Work in processes, of which any may be killed without harm to the others, and whose memory is bounded."""

from __future__ import annotations

import contextlib
import logging
import os
import pickle
import signal
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, NamedTuple

from bundle.errors import UserError
from bundle.processes.server import start_server

__all__ = ["Lost", "NoProcessesError", "run_in_processes"]

logger = logging.getLogger(__name__)

#: seconds between looks at the memory, gigabytes that a process takes before it works, and tasks that must go well
#: before one more is tried at a time
_LOOK, _BASE_GB, _GOES_WELL = 0.1, 0.5, 20
_Function = Callable[[Any], Any]
_REMEDY = "its memory may not suffice: give more, or leave the volume out"


class NoProcessesError(Exception):
    """No process can be started for the work, as in a program that is not guarded by ``if __name__ == "__main__"``."""


class Lost(NamedTuple):
    """A task whose process was killed twice, or needed too much memory.

    Attributes:
        problem: what has happened.
        remedy: what to do.
    """

    problem: str
    remedy: str


def run_in_processes(
    function: _Function,
    tasks: Sequence[Any],
    *,
    processes: int,
    memory_gb: float | None = None,
    preload: Sequence[Path] = (),
) -> Iterator[tuple[int, Any]]:
    """Calls a function for each task, in other processes.

    Each process computes with one thread. A process that dies is replaced; its task is tried once more, after all
    others and alone. If all processes together exceed `memory_gb`, the youngest task is stopped and tried again later,
    and fewer run at a time for a while.

    Args:
        function: must pickle, as must the tasks and results.
        tasks: one argument for each call.
        processes: at most so many.
        memory_gb: that all processes together may take; None sets no bound.
        preload: files of modules with what they will need, so that it is loaded once and not by each. A process
            searches for modules in their folders first: their names must be those of no other module.

    Yields:
        Number of a task, and its result or `Lost`, as they become ready.

    Raises:
        NoProcessesError: if none can be started; this process may do the rest.
        Exception: what `function` has raised; the other tasks are then dropped.
    """
    if memory_gb is not None:
        if memory_gb <= 0:
            raise UserError(f"--memory_gb {memory_gb} does not fit: give the gigabytes of all processes, such as 16")
        processes = min(processes, max(1, int(memory_gb / _BASE_GB)))
    pool = _Pool(function, tasks, max(1, min(processes, len(tasks))), memory_gb, preload)
    try:
        yield from pool.run()
    finally:
        pool.close()


class _Worker:
    """A process, and the task that it has."""

    def __init__(self, context: Any, function: bytes) -> None:
        self.connection, other = context.Pipe()
        self.process = context.Process(target=_serve, args=(other, function), daemon=True)
        self.process.start()
        other.close()
        self.task: int | None = None
        self.started = 0.0
        self.ready = False

    def give(self, number: int, task: Any) -> None:
        self.task, self.started = number, time.monotonic()
        with contextlib.suppress(OSError):  # it has just died, which is seen next
            self.connection.send((number, task))

    def stop(self) -> None:
        self.connection.close()  # an idle process ends by itself then
        if self.task is None:
            self.process.join(5)
        self.process.kill()
        self.process.join()


class _Pool:
    def __init__(
        self,
        function: _Function,
        tasks: Sequence[Any],
        processes: int,
        memory_gb: float | None,
        preload: Sequence[Path],
    ) -> None:
        self.function, self.tasks, self.memory_gb = function, tasks, memory_gb
        self.waiting, self.alone = deque(range(len(tasks))), deque[int]()
        self.most = self.now = processes
        self.went_well = 0
        self.tried: set[int] = set()
        self.workers: list[_Worker] = []
        self.context = start_server(preload)
        try:
            self.packed = pickle.dumps(function)
        except Exception as error:
            raise NoProcessesError(f"{type(error).__name__}: {error}") from error

    def run(self) -> Iterator[tuple[int, Any]]:
        while self.waiting or self.alone or self._busy():
            self._hand_out()
            ends = {w.connection: w for w in self.workers} | {w.process.sentinel: w for w in self.workers}
            for worker in {ends[end] for end in wait(list(ends), None if self.memory_gb is None else _LOOK)}:
                yield from self._hear(worker)
            yield from self._bound_memory()

    def close(self) -> None:
        for worker in self.workers:
            worker.stop()
        self.workers = []

    def _busy(self) -> list[_Worker]:
        return [worker for worker in self.workers if worker.task is not None]

    def _hand_out(self) -> None:
        queue, most = (self.waiting, self.now) if self.waiting else (self.alone, 1)
        if queue is self.alone and not self._busy() and len(self.workers) > 1:
            self.close()  # it may need the memory that the idle ones hold
        while queue and len(self._busy()) < most:
            idle = next((worker for worker in self.workers if worker.task is None), None)
            if idle is None:
                idle = _Worker(self.context, self.packed)
                self.workers.append(idle)
            number = queue.popleft()
            idle.give(number, self.tasks[number])

    def _hear(self, worker: _Worker) -> Iterator[tuple[int, Any]]:
        try:
            message = worker.connection.recv() if worker.connection.poll() else None
        except (EOFError, OSError):
            message = None
        if message is None:
            yield from self._bury(worker)
        elif message == "ready":
            worker.ready = True
        else:
            number, worker.task = worker.task, None
            result, error = message
            if error is not None:
                raise error
            self.went_well += 1
            if self.went_well >= _GOES_WELL and self.now < self.most:
                self.now, self.went_well = self.now + 1, 0
            assert number is not None
            yield number, result

    def _bury(self, worker: _Worker) -> Iterator[tuple[int, Any]]:
        """Replaces a process that has died."""
        worker.process.join(5)  # the connection closes a moment before it ends
        number, code = worker.task, worker.process.exitcode
        self.workers.remove(worker)
        worker.stop()
        if number is None:
            return
        if not worker.ready and code is not None and code > 0:
            raise NoProcessesError(f"a process ended with exit code {code} before it was ready")
        how = f"was killed by {signal.Signals(-code).name}" if code and code < 0 else f"ended with exit code {code}"
        logger.warning("a process that prepared a volume %s", how)
        if number in self.tried:
            yield number, Lost(f"cannot be prepared: the process that did it {how}, twice", _REMEDY)
        else:
            self.tried.add(number)
            self.alone.append(number)

    def _bound_memory(self) -> Iterator[tuple[int, Any]]:
        """Stops the youngest task while all processes together take too much."""
        if self.memory_gb is None:
            return
        while (busy := self._busy()) and sum(_resident(worker) for worker in self.workers) > self.memory_gb * 1e9:
            youngest = max(busy, key=lambda worker: worker.started)
            number = youngest.task
            assert number is not None
            self.workers.remove(youngest)
            youngest.stop()
            self.went_well = 0
            if len(busy) > 1:
                self.now = max(1, len(busy) - 1)
                self.alone.append(number)
            elif self.workers or number not in self.tried:
                self.tried.add(number)
                self.alone.append(number)  # idle processes hold memory; they are gone when it is alone
            else:
                problem = f"needs more than --memory_gb {self.memory_gb:g}"
                yield number, Lost(problem, "raise it or leave the volume out")


def _resident(worker: _Worker) -> float:
    """Bytes of memory that are a process's own; 0 where the system does not tell."""
    try:
        status = Path(f"/proc/{worker.process.pid}/status").read_text()
    except OSError:
        return 0.0
    lines = [line.split() for line in status.splitlines() if line.startswith("RssAnon:")]
    return float(lines[0][1]) * 1024 if lines else 0.0


def _serve(connection: Connection, packed: bytes) -> None:
    """What a process does until the other end of its connection is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # whoever has started it stops it
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    os.environ["ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS"] = "1"  # also of a server that somebody else has started
    import torch  # noqa: PLC0415 - not needed where tasks are handed out

    torch.set_num_threads(1)
    function = pickle.loads(packed)  # noqa: S301 - from the process that has started this one
    connection.send("ready")
    while True:
        try:
            _, task = connection.recv()
        except (EOFError, OSError):
            return
        try:
            answer: tuple[Any, Exception | None] = (function(task), None)
        except Exception as error:  # noqa: BLE001  it is raised again at the other end
            answer = (None, error)
        connection.send(answer)
