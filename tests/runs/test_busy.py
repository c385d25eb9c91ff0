# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch

from bundle.inference.start import start_inference
from bundle.runs import busy, start_run
from bundle.runs.busy import busy_cores, warn_of_busy_cores


class Counts:
    """Stands for /proc/stat: the second reading is 100 ticks later on each core, of which `used` were in use."""

    def __init__(self, *used: int) -> None:
        self.used, self.readings = used, 0

    def read_text(self) -> str:
        self.readings += 1
        later = self.readings % 2 == 0
        lines = ["cpu  9 9 9 9 9 9 9 0 0 0"]
        for number, ticks in enumerate(self.used):
            # user nice system idle iowait irq softirq steal guest guest_nice
            idle, wait = 100 - ticks - 2, 2
            more = [ticks - 1, 0, 1, idle, wait, 0, 0, 0] if later else [0] * 8
            lines.append(" ".join([f"cpu{number}", *(str(1000 + each) for each in more), "0", "0"]))
        return "\n".join([*lines, "intr 5 5"])


@pytest.fixture
def threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two threads, and nothing said of how they wait."""
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    for name in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(("used", "expected"), [((90, 5), 0.95), ((0, 0), 0.0), ((98, 98, 98, 50), 3.44)])
def test_time_that_is_neither_idle_nor_waiting_for_a_disk_counts(
    used: tuple[int, ...], expected: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(busy, "_COUNTS", Counts(*used))
    found = busy_cores(0)
    assert found is not None
    assert found == (pytest.approx(expected), len(used))


def test_this_machine_tells_or_nothing_is_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = busy_cores(0.05)
    assert found is None or 0 <= found[0] <= found[1]
    monkeypatch.setattr(busy, "_COUNTS", tmp_path / "stat")
    assert busy_cores(0) is None
    assert not warn_of_busy_cores()


@pytest.mark.parametrize(
    ("used", "warned"), [((95, 5), True), ((40, 5), False), ((97, 97, 0, 0), False), ((97, 97, 60, 0), True)]
)
@pytest.mark.usefixtures("threads")
def test_warns_where_threads_have_to_share(
    used: tuple[int, ...], warned: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(busy, "_COUNTS", Counts(*used))
    assert warn_of_busy_cores() == warned
    assert ("GOMP_SPINCOUNT=1000 before the command, or OMP_NUM_THREADS=" in caplog.text) == warned


@pytest.mark.parametrize(
    ("name", "value"), [("OMP_WAIT_POLICY", "passive"), ("GOMP_SPINCOUNT", "1000"), ("WORLD_SIZE", "2")]
)
@pytest.mark.usefixtures("threads")
def test_says_nothing_where_the_user_has_chosen_or_the_others_are_of_the_same_run(
    name: str, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(busy, "_COUNTS", Counts(97, 97))
    assert warn_of_busy_cores()
    monkeypatch.setenv(name, value)
    assert not warn_of_busy_cores()


@pytest.mark.usefixtures("threads")
def test_one_thread_waits_for_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(busy, "_COUNTS", Counts(97, 97))
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    assert not warn_of_busy_cores()


@pytest.mark.usefixtures("threads")
def test_training_and_inference_begin_with_it(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(busy, "_COUNTS", Counts(97, 97))
    start_run(device="cpu", config_name=None)
    start_inference(device="cpu", keep_memory=False)
    warnings = [record.message for record in caplog.records if record.levelno == logging.WARNING]
    assert len([text for text in warnings if text.startswith("other programs keep 1.9 of 2 cores busy")]) == 2
