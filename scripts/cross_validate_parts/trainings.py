# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""Trains the folds, each in a process of its own."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

from cross_validate_parts.plan import ROOT, Plan, given_options
from cross_validate_parts.same_scans import check_scans
from tqdm import tqdm

from bundle.errors import user_error_in

__all__ = ["Trainings"]


class Trainings:
    """Trains the folds, so many at a time, each in a process of its own."""

    def __init__(self, plan: Plan, jobs: int) -> None:
        self.plan, self.jobs = plan, jobs
        self._running: dict[int, subprocess.Popen[bytes]] = {}
        self._stopped = threading.Event()
        self._looking = threading.Lock()

    def run(self) -> dict[int, str]:
        """Trains what is not done; gives for each fold that failed its last words."""
        waiting = [fold for fold in range(self.plan.folds) if not self.plan.is_done(fold)]
        if done := self.plan.folds - len(waiting):
            print(f"{done} of {self.plan.folds} folds are done already")
        failed: dict[int, str] = {}
        epochs = self._epochs()  # before there are threads: MONAI's parser reads a config in one at a time
        with ThreadPoolExecutor(self.jobs) as pool:
            tasks = {pool.submit(self._train, fold): fold for fold in waiting}
            try:
                self._watch(set(tasks), epochs)
            except KeyboardInterrupt:
                self._stop()
                raise
            for task, fold in tasks.items():
                if said := task.result():
                    failed[fold] = said
        return failed

    def _train(self, fold: int) -> str:
        if self._stopped.is_set():
            return "interrupted"
        try:
            with self._looking:
                check_scans(self.plan)  # the data may have changed while other folds were trained
        except Exception as error:  # noqa: BLE001 - what fails for one fold must not end the others
            return str(user_error_in(error) or f"{type(error).__name__}: {error}")
        log = self.plan.log(fold)
        log.parent.mkdir(parents=True, exist_ok=True)
        paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
        with log.open("ab") as file:
            before = file.seek(0, os.SEEK_END)  # an earlier attempt may have ended for another reason
            process = subprocess.Popen(self.plan.command(fold), stdout=file, stderr=subprocess.STDOUT, env=environment)
            self._running[fold] = process
            code = process.wait()
        del self._running[fold]
        if code == 0:
            self.plan.mark(fold).touch()
            return ""
        if code < 0:
            return f"was killed by {signal.Signals(-code).name}"
        return _last_words(log, before) or f"ended with {code}"

    def _watch(self, tasks: set[Any], epochs: int | None) -> None:
        """Shows the epochs of all folds until they are done."""
        total = None if epochs is None else epochs * self.plan.folds
        with tqdm(total=total, desc="epochs of all folds") as bar:
            bar.update(self._trained())
            bar.unpause()
            while tasks:
                tasks = wait(tasks, timeout=1).not_done
                if more := self._trained() - int(bar.n):
                    bar.update(more)

    def _trained(self) -> int:
        files = (self.plan.folder(fold).history for fold in range(self.plan.folds))
        return sum(max(0, len(file.read_bytes().splitlines()) - 1) for file in files if file.is_file())

    def _epochs(self) -> int | None:
        given = given_options(self.plan.overrides).get("epochs", self.plan.config().get("epochs"))
        return int(given) if str(given).isdecimal() else None

    def _stop(self) -> None:
        self._stopped.set()
        for process in list(self._running.values()):
            process.send_signal(signal.SIGINT)  # it writes its summary


def _last_words(log: Path, start: int) -> str:
    """The line of an error, or the last line, of what was written from byte `start` on."""
    text = log.read_bytes()[start:].decode(errors="replace")
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("error: ")]
    return (errors or lines or [""])[-1].removeprefix("error: ")
