# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""nnU-Net's commands, forked from a process that has imported it: each of them, and of their pools, would else."""

from __future__ import annotations

import importlib
import multiprocessing
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from tests.commands import SERVER, be_python, run_command

#: of the commands that are run; the last one is what the trainer imports late
MODULES = (
    "nnunetv2.experiment_planning.plan_and_preprocess_entrypoints",
    "nnunetv2.run.run_training",
    "nnunetv2.inference.predict_from_raw_data",
    "torch._dynamo",
)


class Commands:
    """Stands for `subprocess`: nnU-Net's programs are forked from a process of nnU-Net's, other Python as elsewhere.

    Args:
        connection: to that process.
        folder: of nnU-Net's packages.
    """

    def __init__(self, connection: Connection, folder: Path) -> None:
        self._connection, self._folder = connection, folder

    def run(self, command: Sequence[str], **options: Any) -> subprocess.CompletedProcess[str]:
        """As `subprocess.run(command, capture_output=True, text=True)`."""
        words = command[1:] if command[0] == sys.executable else command
        if str(self._folder) not in options["env"]["PYTHONPATH"] or "export_model.py" in words[0]:
            return run_command(command, **options)
        with tempfile.TemporaryDirectory() as folder:
            said = [Path(folder) / name for name in ("stdout", "stderr")]
            self._connection.send((tuple(words), options["cwd"], options["env"], said))
            code = self._connection.recv()
            return subprocess.CompletedProcess(words, code, *(file.read_text() for file in said))


@contextmanager
def nnunet_commands(folder: Path) -> Iterator[Commands]:
    """The commands, as long as their process runs.

    Args:
        folder: of nnU-Net's packages.
    """
    ours, theirs = SERVER.Pipe()
    process = SERVER.Process(target=_serve, args=(theirs, folder))
    process.start()
    theirs.close()  # so that the end of the process is the end of what can be received
    try:
        yield Commands(ours, folder)
    finally:
        ours.close()
        process.join()


def _serve(connection: Connection, folder: Path) -> None:
    """Forks a process for each command, until the other side ends."""
    sys.path.insert(0, str(folder))
    os.environ["nnUNet_def_n_proc"] = "1"  # noqa: SIM112 - its name; it is read at import, all else when it is needed
    for module in MODULES:
        importlib.import_module(module)
    fork = multiprocessing.get_context("fork")
    multiprocessing.get_context = lambda _=None: fork  # type: ignore[assignment] # nnU-Net's pools are spawned
    while True:
        try:
            words = connection.recv()
        except EOFError:
            return
        process = fork.Process(target=be_python, args=words)
        process.start()
        process.join()
        connection.send(process.exitcode)
