# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""The process that others are forked from. What it has loaded, none of them loads again."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
from collections.abc import Iterator, Mapping, Sequence
from multiprocessing import forkserver
from pathlib import Path
from typing import Any

__all__ = ["start_server"]

#: each process has one core; and a process with one thread can be forked at any time
_ONE_THREAD = (
    "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMEXPR_NUM_THREADS", "NUMEXPR_MAX_THREADS",
    "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS",
)  # fmt: skip


def start_server(preload: Sequence[Path] = ()) -> Any:
    """The context of `multiprocessing` whose processes are forked from a server; starts it, if there is none yet.

    Args:
        preload: files of modules that it loads, as for `run_in_processes`. A server that runs already stays as it is.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([file.stem for file in preload])
    folders = dict.fromkeys(str(file.parent) for file in preload)
    path = os.pathsep.join(filter(None, [*folders, os.environ.get("PYTHONPATH")]))
    # torch asks the system for large pages: a volume of 4 KiB pages costs as much time as what is computed with it
    huge = {"THP_MEM_ALLOC_ENABLE": os.environ.get("THP_MEM_ALLOC_ENABLE", "1")}
    with _environment({"PYTHONPATH": path, **huge, **dict.fromkeys(_ONE_THREAD, "1")}):
        forkserver.ensure_running()
    return context


@contextlib.contextmanager
def _environment(values: Mapping[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
