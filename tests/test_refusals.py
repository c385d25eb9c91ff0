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
from torch.utils.data import DataLoader, Dataset

from bundle.atomic import replace_file, writing_into
from bundle.errors import UserError, VolumeError, user_error_in
from tests.commands import run_python

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


@pytest.mark.parametrize("way", ["temporary.open('wb')", "temporary"], ids=["Python", "torch"])
def test_a_file_that_may_not_grow_is_one_line_whatever_the_writer_raises(way: str, tmp_path: Path):
    code = f"""
import resource, sys, torch
from bundle.atomic import replace_file
from bundle.errors import install_excepthook
install_excepthook()
resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
with replace_file({str(tmp_path / "last.pt")!r}) as temporary:
    torch.save(torch.zeros(100_000), {way})
"""
    done = run_python("-c", code, cwd=ROOT)
    (said,) = done.stderr.strip().splitlines()
    named = f"{tmp_path}: a file may not be as large" if way != "temporary" else "a file cannot be written to its end"
    assert said.startswith(f"error: {named}") and "ulimit -f" in said
    assert done.returncode == 1 and not list(tmp_path.iterdir())


def test_a_folder_that_is_gone_in_the_middle_of_a_write_is_named(tmp_path: Path):
    def write():
        with replace_file(tmp_path / "run/last.pt") as temporary:
            temporary.unlink()
            temporary.parent.rmdir()
            temporary.write_text("a")

    with pytest.raises(OSError, match="run") as caught:
        write()
    assert line(caught.value).startswith(f"{tmp_path}/run: the folder is gone")


def test_a_table_that_finds_no_room_names_its_folder(tmp_path: Path):
    def write():
        with writing_into(tmp_path):
            raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OSError, match="No space") as caught:
        write()
    assert line(caught.value).startswith(f"{tmp_path}: the disk is full")


class Refusing(Dataset[int]):
    """Fails in the loading process, as a volume whose cache and file are broken does."""

    def __init__(self, error: Exception) -> None:
        self.error = error

    def __getitem__(self, index: int) -> int:
        try:
            raise UserError("jane_doe.dcm: is the cause: nobody shall see it")
        except UserError as cause:
            raise self.error from cause

    def __len__(self) -> int:
        return 1


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (UserError("chunk 0 is damaged: start again"), "chunk 0 is damaged: start again"),
        (VolumeError("a.nii", "is no volume", "leave it out"), "a.nii: is no volume; leave it out"),
    ],
    ids=["UserError", "VolumeError"],
)
def test_the_error_of_a_loading_process_has_no_traceback(error: Exception, said: str):
    with pytest.raises(Exception, match="Original Traceback") as caught:
        list(DataLoader(Refusing(error), num_workers=1))
    assert "jane_doe" in str(caught.value)
    assert line(caught.value) == said


@pytest.mark.parametrize("error", [RuntimeError("shapes differ"), FileNotFoundError(errno.ENOENT, "No", "a")])
def test_other_errors_keep_their_traceback(error: Exception):
    assert user_error_in(error) is None


def test_the_command_line_shows_one_line():
    code = (
        "from bundle.errors import install_excepthook; install_excepthook()\n"
        "import torch; torch.nn.BatchNorm1d(2)(torch.zeros(1, 2))"
    )
    done = run_python("-c", code, cwd=ROOT)
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
