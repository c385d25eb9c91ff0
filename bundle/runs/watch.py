# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""Ends all processes, with a line that names it, when one of them has died; a slow one is waited for."""

from __future__ import annotations

import atexit
import os
import re
import signal
import socket
import sys
import threading
import time
import uuid
from types import FrameType, TracebackType
from typing import Any, NoReturn

import torch.distributed as dist
from torch.distributed import PrefixStore, TCPStore  # type: ignore[attr-defined]  # documented, but not in its stubs

from bundle.errors import PREEMPTED, Preempted, Terminated, user_error_in

__all__ = ["Watch", "told_to_end"]

#: set once a signal has told this process to end: torchrun may send one before the connection to a dead one breaks
told_to_end = threading.Event()

#: seconds between two signs of life, and without one until a process counts as dead: together below a minute
_EVERY, _PATIENCE = 5.0, 35.0
_REMEDY = "see its log, and go on with --resume"
#: what the back ends say when a process at the other end of a connection is gone
_BROKEN = re.compile(
    r"[Cc]onnection (closed|reset|refused|was)|[Bb]roken pipe|remote process exited|[Nn]o route to host"
)


class Watch:
    """Signs of life of all processes of a run, through the store that they met at.

    The processes wait for each other for hours, because a disk may be slow, and one may have more to prepare than
    another. So a long wait says nothing. A thread in each process counts up a number in the store instead, whatever the
    process is doing. The first process of each node, and the last of all, read the numbers. If one has not changed for
    35 s, they write into the store which process that is; every process then prints that line and ends with code 1.
    A process that ends by an error writes so itself.

    Args:
        store: a connection of its own: the process group's may be busy for hours.
        rank: of this process.
        world: number of processes.
        looks: whether this process reads the numbers of the others.
        where: the store, in words.
        every: seconds between two signs of life.
        patience: seconds without one after which a process counts as dead.
    """

    def __init__(
        self,
        store: Any,
        *,
        rank: int,
        world: int,
        looks: bool = True,
        where: str = "the store",
        every: float = _EVERY,
        patience: float = _PATIENCE,
    ) -> None:
        self.store, self.rank, self.world, self.looks, self.where = store, rank, world, looks, where
        self.every, self.patience = every, patience
        self.name = f"process {rank} (pid {os.getpid()} on {socket.gethostname()})"
        self._over = threading.Event()
        self._answered = time.monotonic()
        self._threads = [threading.Thread(target=run, daemon=True) for run in (self._run, self._guard)]

    @staticmethod
    def connect() -> Watch:
        """One for the present process group, which was made from the environment. All processes must call it."""
        host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        token = [uuid.uuid4().hex]  # the processes that torchrun starts again meet at the same store
        dist.broadcast_object_list(token, src=0)
        store = PrefixStore(f"bundle/watch/{token[0]}", TCPStore(host, port, is_master=False))
        rank, world = dist.get_rank(), dist.get_world_size()
        looks = rank == world - 1 or os.environ.get("LOCAL_RANK", "0") == "0"
        watch = Watch(store, rank=rank, world=world, looks=looks, where=f"the store at {host}:{port}")
        watch.announce()
        dist.barrier()  # from here on all names are there
        return watch

    def announce(self) -> None:
        """Writes the first sign of life. All processes must have done so before one begins."""
        self.store.set(f"name/{self.rank}", self.name)
        self.store.set(f"beat/{self.rank}", "0")

    def start(self) -> None:
        """Begins, and looks at the error by which the program ends, if it does."""
        previous = sys.excepthook

        def show(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
            self.report(error)
            previous(kind, error, trace)

        sys.excepthook = show
        self._answered = time.monotonic()
        for thread in self._threads:
            thread.start()

    def stop(self, *, done: bool = True) -> None:
        """Ends.

        Args:
            done: the others need not miss this process.
        """
        if not self._over.is_set():
            self._over.set()
            self._threads[0].join(self.patience)
            if done:
                _or_none(self.store.set, f"beat/{self.rank}", "done")

    def report(self, error: BaseException) -> None:
        """What is to be said and done when an error ends this process."""
        if isinstance(error, Preempted):
            self.stop()
            if str(error):
                print(error, file=sys.stderr)
            _leave(PREEMPTED)
        if isinstance(error, KeyboardInterrupt):
            self.stop(done=False)  # where only this process was interrupted, the others will miss it
            return
        if _is_broken(error):
            self._wait_for_the_name()
        known = user_error_in(error)
        reason = type(error).__name__ if known is None else str(known)
        _or_none(self.store.compare_set, "dead", "", f"{self.name} has ended with an error ({reason}): {_REMEDY}")
        self.stop()

    def _wait_for_the_name(self) -> None:
        """The thread ends this process when it knows who has died; on its node torchrun does so, and names it."""
        if told_to_end.is_set():
            self.stop()
            _leave(1)
        for number in (signal.SIGTERM, signal.SIGUSR1):
            signal.signal(number, _interrupt)
        try:
            self._threads[0].join(self.patience + 4 * self.every)
        except Terminated:
            self.stop()
            _leave(1)

    def _run(self) -> None:
        beats = [("", time.monotonic())] * self.world
        count = sightings = 0
        while not self._over.wait(self.every):
            count += 1
            try:
                self.store.set(f"beat/{self.rank}", str(count))
                if self.looks:
                    beats = self._look(beats)
                found = self.store.get("dead").decode() if self.store.check(["dead"]) else ""
                self._answered = time.monotonic()
            except RuntimeError:
                continue  # the guard has a patience
            # a process that has an error itself says its own line in the meantime
            sightings += int(bool(found))
            if sightings > 1 and not self._over.is_set():
                _end(found)
                return

    def _look(self, before: list[tuple[str, float]]) -> list[tuple[str, float]]:
        """The numbers of all processes, and since when each is the same."""
        values = [self.store.get(f"beat/{rank}").decode() for rank in range(self.world)]
        now = time.monotonic()
        beats = [old if old[0] == value else (value, now) for old, value in zip(before, values)]
        silent = [r for r, (value, since) in enumerate(beats) if value != "done" and now - since > self.patience]
        if silent:
            names = ", ".join(self.store.get(f"name/{rank}").decode() for rank in silent)
            self.store.compare_set("dead", "", f"no sign of life for {self.patience:.0f} s from {names}: {_REMEDY}")
        return beats

    def _guard(self) -> None:
        """Ends the process when the store does not answer: a machine that is gone does not even refuse."""
        while not self._over.wait(self.every):
            if time.monotonic() - self._answered > self.patience + 2 * self.every:
                _end(f"{self.where}, where process 0 runs, does not answer any more: {_REMEDY}")
                return


def _interrupt(number: int, frame: FrameType | None) -> NoReturn:  # noqa: ARG001 - the signature of a handler
    raise Terminated


def _is_broken(error: BaseException | None) -> bool:
    """Whether the error, or one behind it, says that a connection to another process is gone."""
    seen: list[BaseException] = []
    while error is not None and error not in seen:
        if isinstance(error, dist.DistBackendError) or (isinstance(error, RuntimeError) and _BROKEN.search(str(error))):
            return True
        seen.append(error)
        error = error.__cause__ or error.__context__
    return False


def _or_none(function: Any, *args: Any) -> Any:
    """What a function of the store returns; None if it cannot be reached."""
    try:
        return function(*args)
    except RuntimeError:
        return None


def _end(line: str) -> None:
    print(f"error: {line}", file=sys.stderr, flush=True)
    os._exit(1)  # the main thread may wait for the dead process


def _leave(code: int) -> NoReturn:
    """Ends the process as the interpreter does, but for the threads of the back end, which may abort it."""
    atexit._run_exitfuncs()  # noqa: SLF001 - has no public name
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
