# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""Python's command line in a process of its own that need not import MONAI, which takes six seconds each time.

A server, which has imported MONAI and other packages but nothing of the bundle, is started once and forks a process for
each command: see `multiprocessing`. A process has one such server, so it also forks what the bundle does in processes.
No test may stop it: that waits for the end of all that the test's process has ever forked. What a program imports, and
how it is found without MONAI, is not to be tested so.
"""

from __future__ import annotations

import atexit
import multiprocessing
import os
import runpy
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.multiprocessing.spawn import start_processes

__all__ = ["SERVER", "Started", "be_python", "run_command", "run_processes", "run_python", "start_python"]

SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(
    [
        "tests.libyaml",  # before MONAI
        "monai.bundle",
        "torch.utils.tensorboard",
        "blosc2",
        "torch._dynamo",  # which an optimizer imports
        "scipy.cluster.hierarchy",
        "matplotlib.backends.backend_agg",  # which the first picture imports
        "safetensors.torch",
    ]
)


class Started:
    """A command that runs: see `start_python`.

    Args:
        words: behind "python".
        cwd: its working folder.
        env: its environment.
    """

    def __init__(self, words: tuple[str, ...], cwd: Path, env: Mapping[str, str]) -> None:
        self._words, self._folder = words, tempfile.TemporaryDirectory()
        self._said = [Path(self._folder.name) / name for name in ("stdout", "stderr")]
        self._process = SERVER.Process(target=be_python, args=(words, cwd, dict(env), self._said))
        self._process.start()

    def finish(self, timeout: float = 300) -> subprocess.CompletedProcess[str]:
        """Waits for its end, as `subprocess.run(..., capture_output=True, text=True)` does."""
        self._process.join(timeout)
        code = self._process.exitcode
        if code is None:
            self._process.kill()
            self._process.join()
        out, err = (file.read_text() if file.exists() else "" for file in self._said)
        self._folder.cleanup()
        if code is None:
            raise subprocess.TimeoutExpired(self._words, timeout, out, err)
        return subprocess.CompletedProcess(self._words, code, out, err)


def start_python(*words: object, cwd: Path, env: Mapping[str, str] | None = None) -> Started:
    """Starts ``python WORDS...``: -m and a module, -c and code, or a script, and then its arguments."""
    return Started(tuple(map(str, words)), cwd, os.environ if env is None else env)


def run_python(*words: object, cwd: Path, env: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """As `subprocess.run([sys.executable, *words], cwd=cwd, env=env, capture_output=True, text=True)`."""
    return start_python(*words, cwd=cwd, env=env).finish()


def run_command(command: Sequence[str], **options: Any) -> subprocess.CompletedProcess[str]:
    """Stands for `subprocess.run` where a program of ours starts Python, or a script of Python's, and reads all."""
    words = command[1:] if command[0] == sys.executable else command
    return run_python(*words, cwd=options.get("cwd", Path.cwd()), env=options.get("env"))


def run_processes(function: Callable[..., None], *args: object, count: int = 2) -> None:
    """Runs ``function(number, *args)`` in so many processes at once: see `torch.multiprocessing.spawn`."""
    start_processes(function, args, nprocs=count, start_method="forkserver")


def be_python(words: tuple[str, ...], cwd: Path, env: dict[str, str], said: list[Path]) -> None:
    """Does in a forked process what Python does with its command line.

    Args:
        words: behind "python".
        cwd: the working folder.
        env: the environment.
        said: files for what goes to stdout and to stderr.
    """
    for stream, file in enumerate(said, 1):
        os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT), stream)
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(env)
    if "OMP_NUM_THREADS" in env:  # which is read when torch is imported
        torch.set_num_threads(int(env["OMP_NUM_THREADS"]))
    sys.dont_write_bytecode = bool(env.get("PYTHONDONTWRITEBYTECODE"))
    first, *others = words
    place = {"-m": str(cwd), "-c": ""}.get(first, str(Path(first).parent))
    given = [path for path in env.get("PYTHONPATH", "").split(os.pathsep) if path]
    installed = [path for path in sys.path if path.startswith((sys.prefix, sys.base_prefix))]
    sys.path[:] = [place, *given, *installed]
    try:
        _execute(first, others)
    except Exception:  # noqa: BLE001 - as Python does with any
        sys.excepthook(*sys.exc_info())  # type: ignore[arg-type] # there is one
        sys.exit(1)
    finally:
        atexit._run_exitfuncs()  # which a forked process does not


def _execute(first: str, others: list[str]) -> None:
    if first == "-m":
        sys.argv = others
        runpy.run_module(others[0], run_name="__main__", alter_sys=True)
    elif first == "-c":
        sys.argv = ["-c", *others[1:]]
        exec(others[0], {"__name__": "__main__"})
    else:
        sys.argv = [first, *others]
        runpy.run_path(first, run_name="__main__")
