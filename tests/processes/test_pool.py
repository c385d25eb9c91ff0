# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""bundle/processes/pool.py: work goes on whatever happens to one process, and memory is bounded."""

from __future__ import annotations

import gc
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import bundle.processes.pool
from bundle.errors import UserError
from bundle.processes import Lost, NoProcessesError, run_in_processes

ROOT = Path(__file__).parents[2]


class Work:
    """Does what a task says."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __call__(self, task: Any) -> Any:
        what, value = task
        with (self.folder / f"{what}_{value}").open("a") as file:
            file.write("x")
        if what == "killed" or (what == "killed once" and (self.folder / f"{what}_{value}").stat().st_size == 1):
            os.kill(os.getpid(), signal.SIGKILL)
        if what == "exit":
            os._exit(3)
        if what == "full":
            raise UserError("the disk is full: make room")
        if what == "memory":
            kept = np.ones(value * 2**17)
            signal.pause()
            return len(kept)
        if what == "look":
            lines = Path(f"/proc/{os.getppid()}/status").read_text().splitlines()
            threads = next(int(line.split()[1]) for line in lines if line.startswith("Threads:"))
            return threads, "mask_in_mask_preload" in sys.modules, gc.get_freeze_count(), bundle.processes.pool.__file__
        return os.getpid(), torch.get_num_threads(), value


def test_a_killed_process_costs_no_other_task_anything(tmp_path: Path) -> None:
    tasks = [("fine", 0), ("killed", 1), ("killed once", 2), ("exit", 3), *(("fine", n) for n in range(4, 12))]
    results = dict(run_in_processes(Work(tmp_path), tasks, processes=2, memory_gb=4))
    assert sorted(results) == list(range(12))
    fine = [results[n] for n in (0, 2, *range(4, 12))]
    assert [value for _, _, value in fine] == [0, 2, *range(4, 12)] and {threads for _, threads, _ in fine} == {1}
    assert os.getpid() not in {process for process, _, _ in fine}
    assert isinstance(results[1], Lost) and results[1].problem.endswith("was killed by SIGKILL, twice")
    assert isinstance(results[3], Lost) and results[3].problem.endswith("ended with exit code 3, twice")
    assert {(tmp_path / f"fine_{n}").read_text() for n in (0, *range(4, 12))} == {"x"}, "done once"


def test_processes_are_forked_from_one_thread_that_has_loaded_what_they_need(tmp_path: Path) -> None:
    # in a program of its own, as tests have one server for all: tests/commands.py
    code = """
import json, os, sys
from pathlib import Path
from bundle.data.preparation import modules_to_load
from bundle.processes import run_in_processes
from tests.processes.test_pool import Work
before = dict(os.environ)
((_, found),) = run_in_processes(Work(Path(sys.argv[1])), [("look", 0)], processes=1, preload=modules_to_load())
print(json.dumps([*found, dict(os.environ) == before]))
"""
    done = subprocess.run([sys.executable, "-c", code, tmp_path], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    threads, is_loaded, frozen, file, is_environment_as_before = json.loads(done.stdout)
    assert threads == 1, "a thread would be lost by the fork, with the locks that it holds"
    assert is_loaded and frozen > 100_000, "what is loaded is no work for the collector of any process"
    assert file == bundle.processes.pool.__file__
    assert is_environment_as_before


def test_a_task_that_needs_more_memory_than_allowed_is_lost_and_the_others_are_done(tmp_path: Path) -> None:
    tasks = [("memory", 1500), *(("fine", n) for n in range(4))]
    results = dict(run_in_processes(Work(tmp_path), tasks, processes=2, memory_gb=1.2))
    assert [results[n][2] for n in range(1, 5)] == [0, 1, 2, 3]
    assert results[0] == Lost("needs more than --memory_gb 1.2", "raise it or leave the volume out")


def test_an_error_that_ends_all_is_raised(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="the disk is full"):
        dict(run_in_processes(Work(tmp_path), [("full", 0), ("fine", 1)], processes=2))


def test_work_that_cannot_be_sent_is_left_to_the_caller() -> None:
    with pytest.raises(NoProcessesError, match="pickle"):
        dict(run_in_processes(lambda task: task, [1], processes=2))


@pytest.mark.parametrize("memory_gb", [0, -1])
def test_no_memory_at_all_is_refused(memory_gb: float, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--memory_gb"):
        dict(run_in_processes(Work(tmp_path), [("fine", 0)], processes=1, memory_gb=memory_gb))
