# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""Many small tasks in several processes, of which one may die."""

from __future__ import annotations

import gc
import multiprocessing
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar

__all__ = ["Pool"]

Task = TypeVar("Task")
Result = TypeVar("Result")

#: tasks that wait for each process, so that none is idle and memory stays bounded
_AHEAD = 4


class Pool:
    """Processes that wait for tasks. They start with the first one.

    Args:
        processes: how many; with 0 the calling process works itself.
    """

    def __init__(self, processes: int) -> None:
        self.processes = processes
        self._executor: ProcessPoolExecutor | None = None

    def run(
        self,
        function: Callable[[Task], Result],
        tasks: Iterable[Task],
        *,
        split: Callable[[Task], Sequence[Task]],
        dead: Callable[[Task], Result],
    ) -> Iterator[Result]:
        """The results, in any order. Tasks are taken one by one, as there is room.

        Args:
            function: of a task; it must pickle.
            tasks: to do.
            split: a task as several smaller ones, or as itself where it cannot be divided. It is asked where a process
                has died.
            dead: the result of a task that cannot be divided, and whose process dies.
        """
        if not self.processes:
            yield from map(function, tasks)
            return
        waiting: dict[Future[Result], Task] = {}
        again: deque[Task] = deque()
        for task in tasks:
            waiting[self._submit(function, task)] = task
            while len(waiting) >= _AHEAD * self.processes:
                yield from self._collect(waiting, again)
        while waiting:
            yield from self._collect(waiting, again)
        while again:  # those that were under way when a process died, one at a time: so it is known which one kills
            yield from self._alone(function, again, split, dead)

    def close(self) -> None:
        """Ends the processes."""
        if self._executor is not None:
            self._executor.shutdown(cancel_futures=True)

    def _submit(self, function: Callable[[Task], Result], task: Task) -> Future[Result]:
        self._executor = self._executor or self._start(self.processes)
        try:
            return self._executor.submit(function, task)
        except BrokenProcessPool:
            self._executor = self._start(self.processes)
            return self._executor.submit(function, task)

    def _collect(self, waiting: dict[Future[Result], Task], again: deque[Task]) -> Iterator[Result]:
        done, _ = wait(waiting, return_when=FIRST_COMPLETED)
        for future in done:
            task = waiting.pop(future)
            try:
                result = future.result()
            except BrokenProcessPool:
                again.append(task)
            else:
                yield result

    def _alone(
        self,
        function: Callable[[Task], Result],
        again: deque[Task],
        split: Callable[[Task], Sequence[Task]],
        dead: Callable[[Task], Result],
    ) -> Iterator[Result]:
        task = again.popleft()
        with self._start(1) as single:
            try:
                yield single.submit(function, task).result()
            except BrokenProcessPool:
                parts = split(task)
                if len(parts) > 1:
                    again.extend(parts)
                else:
                    yield dead(task)

    def _start(self, processes: int) -> ProcessPoolExecutor:
        # forked: a new process would import torch for seconds, and hold 300 MB of its own; it leaves the connection to
        # an index, which it inherits, alone
        executor = ProcessPoolExecutor(
            processes, multiprocessing.get_context("fork"), initializer=_end_with, initargs=(os.getpid(),)
        )
        gc.freeze()  # so that the collector of a new process leaves pages alone that it shares with this one
        try:
            executor.submit(int).result()  # the processes start
        finally:
            gc.unfreeze()
        return executor


def _end_with(parent: int) -> None:
    """Ends this process when its parent is gone, however that ended."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
