# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""What libraries and the machine refuse is one line with a remedy; real ones are provoked where that is possible."""

from __future__ import annotations

import errno
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from bundle.errors import user_error_in

ROOT = Path(__file__).parents[1]


def line(error: BaseException) -> str:
    found = user_error_in(error)
    assert found is not None, repr(error)
    assert "\n" not in str(found)
    return str(found)


def test_batch_norm_with_one_value_per_channel():
    with pytest.raises(ValueError, match="more than 1 value") as caught:
        torch.nn.BatchNorm3d(4)(torch.zeros(1, 4, 1, 1, 1))
    assert "--batch_size" in line(caught.value) and "instance" in line(caught.value)


def test_too_few_file_handles():
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    files = []
    resource.setrlimit(resource.RLIMIT_NOFILE, (64, hard))
    try:
        with pytest.raises(OSError, match="Too many open files") as caught:  # noqa: PT012 - those before it are closed
            for _ in range(100):
                files.append(os.open(os.devnull, os.O_RDONLY))  # noqa: PERF401 - those before the error count
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for file in files:
            os.close(file)
    assert "ulimit -n" in line(caught.value)


@pytest.mark.parametrize(
    "text",
    [
        "DataLoader worker (pid 71) is killed by signal: Bus error. It is possible that dataloader's workers are out.",
        "unable to allocate shared memory(shm) for file </torch_71_1_0>: No space left on device (28)",
        "unable to write to file </torch_71_1_0>: No space left on device (28), insufficient shared memory",
    ],
)
def test_a_tiny_shared_memory(text: str):
    assert "/dev/shm" in line(RuntimeError(text)) and "--num_workers 0" in line(RuntimeError(text))


@pytest.mark.parametrize("number", [errno.EACCES, errno.EROFS, errno.ENOSPC])
def test_a_folder_that_refuses_is_named_with_the_options_that_name_another(number: int):
    said = line(OSError(number, os.strerror(number), "/data/runs"))
    assert said.startswith("/data/runs: ") and "--output_dir" in said and "--cache_dir" in said


def test_the_refusal_is_found_behind_what_monai_wraps_around_it():
    inner = PermissionError(errno.EACCES, "Permission denied", "runs")
    outer = RuntimeError("Failed to evaluate")
    outer.__cause__ = inner
    assert line(outer).startswith("runs: permission is denied")


@pytest.mark.parametrize("error", [RuntimeError("shapes differ"), FileNotFoundError(errno.ENOENT, "No", "a")])
def test_other_errors_keep_their_traceback(error: Exception):
    assert user_error_in(error) is None


def test_the_command_line_shows_one_line():
    code = (
        "from bundle.errors import install_excepthook; install_excepthook()\n"
        "import torch; torch.nn.BatchNorm1d(2)(torch.zeros(1, 2))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.strip().splitlines()[-1].startswith("error: BatchNorm has one value per channel")
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("way", "word"),
    [
        ("raise KeyboardInterrupt", "interrupted"),
        ("os.kill(os.getpid(), 15)", "terminated"),
        ("os.kill(os.getpid(), 10)", "terminated"),
    ],
    ids=["SIGINT", "SIGTERM", "SIGUSR1"],
)
def test_an_interrupt_is_one_line_that_says_how_to_go_on(way: str, word: str):
    code = f"import os\nfrom bundle.errors import install_excepthook\ninstall_excepthook()\n{way}\nprint('goes on')"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode != 0 and not done.stdout
    way_on = "a training goes on from its last complete epoch with --resume, all else with the same command"
    assert done.stderr.strip() == f"{word}: {way_on}"


@pytest.mark.parametrize("text", ["stopped by SIGUSR1: last.pt is written", ""], ids=["first process", "another one"])
def test_a_training_that_was_told_to_end_says_so_and_has_a_code_of_its_own(text: str):
    code = f"from bundle.errors import Preempted, install_excepthook\ninstall_excepthook()\nraise Preempted({text!r})"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr.strip(), done.stdout) == (75, text, "")


def test_a_child_process_that_is_terminated_says_nothing():
    code = """
import os, signal, time
from bundle.errors import install_excepthook
install_excepthook()
ready, say = os.pipe()
child = os.fork()
if not child:
    os.write(say, b".")
    time.sleep(30)
    os._exit(0)
os.read(ready, 1)  # a signal before the child has started is lost
os.kill(child, signal.SIGTERM)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGTERM
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
