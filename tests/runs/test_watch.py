# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""bundle/runs/watch.py: threads on one store stand for processes, and two real processes, of which one is killed."""

from __future__ import annotations

import os
import queue
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist

from bundle.errors import Preempted, Terminated, UserError
from bundle.runs import watch as module
from bundle.runs.watch import Watch
from tests.commands import start_python

ROOT = Path(__file__).parents[2]
CODE = """
import os, signal, sys, torch, torch.distributed as dist
from bundle.errors import install_excepthook
from bundle.runs import distributed, watch
install_excepthook()
distributed.Watch.__init__.__kwdefaults__.update(every=0.2, patience=3.0)
distributed.start_distributed(torch.device("cpu"))
dist.barrier()
if dist.get_rank() == 1:
    print(os.getpid(), flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
dist.barrier()
"""


class Ends:
    """Stands for the end of a process: notes its line."""

    def __init__(self) -> None:
        self.lines: queue.Queue[str] = queue.Queue()

    def __call__(self, line: str) -> None:
        self.lines.put(line)


@pytest.fixture
def ends(monkeypatch: pytest.MonkeyPatch) -> Ends:
    made = Ends()
    monkeypatch.setattr(module, "_end", made)
    return made


@pytest.fixture
def watches(ends: Ends, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Watch]]:
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    store = dist.HashStore()
    made = [Watch(store, rank=rank, world=3, every=0.05, patience=1.5) for rank in range(3)]
    for watch in made:
        watch.announce()
    for watch in made:
        watch.start()
    yield made
    for watch in made:
        watch.stop()


def test_a_process_without_a_sign_of_life_ends_the_others_by_name(watches: list[Watch], ends: Ends) -> None:
    watches[1].stop(done=False)
    lines = [ends.lines.get(timeout=60) for _ in range(2)]
    assert lines == [f"no sign of life for 2 s from {watches[1].name}: see its log, and go on with --resume"] * 2
    assert watches[1].name == f"process 1 (pid {os.getpid()} on {socket.gethostname()})"


def test_a_busy_process_is_waited_for_and_one_that_is_done_not_missed(watches: list[Watch], ends: Ends) -> None:
    watches[1].stop()
    with pytest.raises(queue.Empty):
        ends.lines.get(timeout=4)  # this thread does nothing for longer than their patience


@pytest.mark.parametrize(
    ("error", "reason"), [(UserError("--lr 0: give more"), "--lr 0: give more"), (KeyError("secret"), "KeyError")]
)
def test_an_error_is_told_to_the_others(watches: list[Watch], ends: Ends, error: Exception, reason: str) -> None:
    watches[2].report(error)
    lines = [ends.lines.get(timeout=60) for _ in range(2)]
    assert lines == [f"{watches[2].name} has ended with an error ({reason}): see its log, and go on with --resume"] * 2


def test_a_broken_connection_waits_for_the_name_of_the_dead(watches: list[Watch], ends: Ends) -> None:
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1)]
    watches[1].stop(done=False)
    error = RuntimeError("[gloo/transport/tcp/pair.cc:547] Connection closed by peer [127.0.0.1]:1234")
    watches[0].report(error)
    assert f"from {watches[1].name}: " in ends.lines.get(timeout=60)
    for number, handler in zip((signal.SIGTERM, signal.SIGUSR1), before):
        signal.signal(number, handler)


def test_a_process_that_was_told_to_end_before_the_connection_broke_waits_for_nothing(
    watches: list[Watch], monkeypatch: pytest.MonkeyPatch
) -> None:
    """torchrun tells the others to end when one process has died; such a signal does not come again."""

    def leave(code: int) -> None:
        raise SystemExit(code)

    monkeypatch.setattr(module, "_leave", leave)
    monkeypatch.setattr(module, "told_to_end", threading.Event())
    module.told_to_end.set()
    monkeypatch.setattr(watches[0]._threads[0], "join", lambda *_: None)
    with pytest.raises(SystemExit, match="1"):
        watches[0].report(RuntimeError("Connection closed by peer [127.0.0.1]:1234"))


def test_an_interrupt_of_one_process_is_missed_by_the_others(watches: list[Watch], ends: Ends) -> None:
    watches[0].report(Terminated())
    assert f"from {watches[0].name}: " in ends.lines.get(timeout=60)


def test_a_store_that_does_not_answer_ends_the_process(ends: Ends, monkeypatch: pytest.MonkeyPatch) -> None:
    class Silent:
        def set(self, *_: Any) -> None:
            threading.Event().wait()

    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    watch = Watch(Silent(), rank=0, world=2, where="the store at a:1", every=0.05, patience=0.3)  # type: ignore[arg-type]
    watch.start()
    assert ends.lines.get(timeout=60).startswith("the store at a:1, where process 0 runs, does not answer any more: ")
    watch._over.set()


def test_a_preempted_process_leaves_with_its_code(
    watches: list[Watch], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    left = []
    monkeypatch.setattr(module, "_leave", left.append)
    watches[0].report(Preempted("stopped by SIGTERM"))
    assert left == [75] and capsys.readouterr().err == "stopped by SIGTERM\n"


def test_a_killed_process_is_named_by_the_one_that_waits_for_it() -> None:
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    common = {**os.environ, "MASTER_ADDR": "localhost", "MASTER_PORT": str(port), "WORLD_SIZE": "2", "LOCAL_RANK": "0"}
    first, second = (
        start_python("-c", CODE, cwd=ROOT, env={**common, "OMP_NUM_THREADS": "1", "RANK": str(rank)})
        for rank in range(2)
    )
    ended, killed = first.finish(), second.finish()
    said, pid = ended.stderr, killed.stdout.strip()
    assert killed.returncode == -signal.SIGKILL and ended.returncode == 1, said
    last = said.strip().splitlines()[-1]
    assert last.startswith(f"error: no sign of life for 3 s from process 1 (pid {pid} on "), said
    assert "Traceback" not in said
