# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""scripts/benchmarks/waiting.py: each case is a process with its environment, and busy processes end."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
import waiting


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str | None, str | None, int]]:
    """The policy, the spin count and the busy processes of each training, which only writes its metrics."""
    found: list[tuple[str | None, str | None, int]] = []
    busy: list[Any] = []

    class Process:
        def __init__(self, command: list[str]) -> None:
            assert "while True" in command[-1]
            busy.append(self)

        def kill(self) -> None:
            busy.remove(self)

        def wait(self) -> None:
            pass

    def train(command: list[str], env: dict[str, str], **_: Any) -> subprocess.CompletedProcess[str]:
        found.append((env.get("OMP_WAIT_POLICY"), env.get("GOMP_SPINCOUNT"), len(busy)))
        folder = Path(command[command.index("--output_dir") + 1])
        folder.mkdir(parents=True)
        seconds = 1 + len(busy) * (4 if found[-1] == (None, None, len(busy)) else 1)
        (folder / "metrics.csv").write_text(f"epoch,seconds\n1,99\n2,{seconds}\n3,{seconds}\n")
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(waiting.subprocess, "Popen", Process)
    monkeypatch.setattr(waiting.subprocess, "run", train)
    return found


def test_cases_take_turns_in_processes_with_their_environment(
    calls: list[Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("OMP_WAIT_POLICY", "active")  # the user's is not measured
    assert waiting.main(["--rounds", "2", "--busy", "3"]) == 0
    prepares, *rest = calls
    assert prepares == (None, None, 0) and len(rest) == 12 and rest[:6] == rest[6:]
    cases = [(None, None), ("passive", None), (None, "1000")]
    assert rest[:6] == [(*case, load) for case in cases for load in (0, 3)]
    rows = [line.split("|")[1:-1] for line in capsys.readouterr().out.splitlines()]
    assert [cell.strip() for cell in rows[0]] == ["seconds of an epoch", "alone", "beside 3 busy"]
    assert [[float(cell) for cell in row[1:]] for row in rows[2:]] == [[1, 13], [1, 4], [1, 4]]


def test_busy_processes_end_with_the_block_also_after_an_error() -> None:
    before, during = children(), set()

    def fail() -> None:
        with waiting.busy_cores(2):
            during.update(children() - before)
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        fail()
    assert len(during) == 2 and children() == before


def test_a_training_that_fails_ends_the_command_with_its_last_words(monkeypatch: pytest.MonkeyPatch) -> None:
    failed = subprocess.CompletedProcess([], 1, "", "error: no volumes")
    monkeypatch.setattr(waiting.subprocess, "run", lambda *_, **__: failed)
    with pytest.raises(SystemExit, match="no volumes"):
        waiting.main([])


def children() -> set[str]:
    """The process ids below this one."""
    return {task for file in Path("/proc").glob(f"{os.getpid()}/task/*/children") for task in file.read_text().split()}
