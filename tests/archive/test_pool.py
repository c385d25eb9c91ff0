# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""bundle/archive/pool.py: processes, of which one may die."""

from __future__ import annotations

import os
import signal

import pytest

from bundle.archive.pool import Pool


def double(numbers: list[int]) -> list[int]:
    """Dies of 13."""
    if 13 in numbers:
        os.kill(os.getpid(), signal.SIGKILL)
    return [2 * number for number in numbers]


@pytest.mark.parametrize("processes", [0, 2])
def test_every_task_is_done_once(processes: int) -> None:
    pool = Pool(processes)
    tasks = ([number] for number in range(40) if number != 13)
    found = [n for part in pool.run(double, tasks, split=lambda task: [task], dead=lambda _: []) for n in part]
    pool.close()
    assert sorted(found) == [2 * number for number in range(40) if number != 13]


def test_what_kills_a_process_is_found_and_the_rest_is_done() -> None:
    pool = Pool(2)
    tasks = [list(range(start, start + 5)) for start in range(0, 30, 5)]
    results = pool.run(double, tasks, split=lambda task: [[n] for n in task], dead=lambda task: [-n for n in task])
    found = sorted(n for part in results for n in part)
    pool.close()
    assert found == sorted([-13, *(2 * number for number in range(30) if number != 13)])


def test_tasks_are_taken_as_there_is_room() -> None:
    taken: list[int] = []

    def tasks() -> object:
        for number in range(100):
            taken.append(number)
            yield [number + 100]

    pool = Pool(1)
    results = pool.run(double, tasks(), split=lambda task: [task], dead=lambda _: [])  # type: ignore[arg-type]
    next(iter(results))
    assert len(taken) < 20
    results.close()  # type: ignore[attr-defined]
    pool.close()
