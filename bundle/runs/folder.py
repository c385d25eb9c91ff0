# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""Where a run writes, and which run it continues."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import torch.distributed as dist

from bundle.atomic import free_path, replace_file
from bundle.errors import UserError
from bundle.ranks import is_distributed, this_rank
from bundle.runs.checkpoint import config_of_checkpoint, peek
from bundle.runs.config_source import calling_config
from bundle.runs.lock import lock_folder
from bundle.runs.same_settings import check_same_settings
from bundle.weights import ModelFiles

__all__ = ["RunFolder", "keeps_picture", "newest_run", "open_run_folder"]

logger = logging.getLogger(__name__)

_PICTURES = 50


def keeps_picture(epoch: int) -> bool:
    """Whether the picture of an epoch stays in a long run: each of the first 50, each second up to 100, and so on.

    Every doubling of a run's length adds 25 pictures, so that they never fill a disk.
    """
    step = 1
    while epoch > _PICTURES * step:
        step *= 2
    return epoch % step == 0


@dataclass(frozen=True)
class RunFolder:
    """The folder of one run, and what lies where in it.

    Args:
        path: the folder.
        resumed: whether the run continues from the checkpoint in it.
    """

    path: Path
    resumed: bool = False

    @property
    def config(self) -> Path:
        """The config that the run was started with."""
        return self.path / "config.yaml"

    @property
    def last_checkpoint(self) -> Path:
        """The whole state, after the last epoch or, where one was asked for within an epoch, after the last step."""
        return self.path / "checkpoints" / "last.pt"

    @property
    def best_checkpoint(self) -> Path:
        """The state at the end of the epoch with the lowest validation loss."""
        return self.path / "checkpoints" / "best.pt"

    @property
    def model(self) -> Path:
        """The encoder's weights."""
        return self.path / "model.pt"

    @property
    def model_files(self) -> ModelFiles:
        """The weights with the files beside them."""
        return ModelFiles(self.model)

    @property
    def panels(self) -> Path:
        """Folder of the pictures of what the network predicts."""
        return self.path / "panels"

    def panel(self, epoch: int) -> Path:
        """Picture of the validation after an epoch, counted from 1."""
        return self.panels / f"epoch_{epoch:04d}.png"

    @property
    def labels(self) -> Path:
        """Picture of the labels that are trained on."""
        return self.panels / "labels.png"

    @contextmanager
    def new_panel(self, epoch: int) -> Iterator[Path]:
        """A temporary file that becomes the picture of an epoch; of a long run's earlier ones not all stay."""
        with replace_file(self.panel(epoch)) as temporary:
            yield temporary
        for file in self.panels.glob("epoch_*.png"):
            number = file.stem.removeprefix("epoch_")
            if number.isdigit() and int(number) < epoch and not keeps_picture(int(number)):
                file.unlink(missing_ok=True)

    @property
    def curves(self) -> Path:
        """Picture of the learning curves."""
        return self.path / "curves.png"

    @property
    def history(self) -> Path:
        """Table of every epoch's means."""
        return self.path / "metrics.csv"

    @property
    def tensorboard(self) -> Path:
        """Folder of the TensorBoard events."""
        return self.path / "tensorboard"

    @property
    def summary(self) -> Path:
        """The one-page summary."""
        return self.path / "summary.md"

    @property
    def report(self) -> Path:
        """The same with curves and pictures, as one html file."""
        return self.path / "report.html"

    def holds_run(self) -> bool:
        """Whether a run has written here."""
        return self.config.exists() or self.last_checkpoint.exists()

    def has_ended(self) -> bool:
        """Whether the training has come to its end: its summary says so. Any other run may be running still."""
        said = self.summary.read_text(errors="replace") if self.summary.is_file() else ""
        return "\nTraining completed " in said

    def holds_epoch(self) -> bool:
        """Whether a run has completed an epoch here, so that a start from the beginning would write over it.

        A kill in the first epoch leaves the settings, and at most one row of metrics, but no `model.pt`.
        """
        if self.model.exists() or self.model.with_suffix(".json").exists():
            return True
        return self.history.is_file() and len(self.history.read_bytes().splitlines()) > 2


def open_run_folder(
    *,
    bundle_root: str | os.PathLike[str] = ".",
    output_dir: str | os.PathLike[str] | None = None,
    resume: bool | str = False,
    runs: str = "runs",
) -> RunFolder:
    """Picks the folder for this run, and takes it for this process. Under torchrun, rank 0 does for all.

    A run that is resumed must have the settings of `bundle.runs.same_settings.FIXED` that it was trained with.

    Args:
        bundle_root: new runs go to `<runs>/<date>_<time>` below it.
        output_dir: the folder instead of that.
        resume: False starts a new run. True continues the run in `output_dir` or, without one, the newest run under
            `runs/` that has a checkpoint; with an `output_dir` that has no checkpoint yet, training starts from the
            beginning, so that a scheduler may always restart one and the same command. A path continues that run.
        runs: folder of the runs of one kind, so that fine-tuning does not continue a pre-training.

    Raises:
        UserError: if there is nothing to continue, the settings differ, another process writes there, or a new run
            would write over another one.
    """
    source = calling_config()  # the config can be seen only now, while MONAI's parser makes this component
    present = {} if source is None else source.parser.get()
    return _decided_by_rank_0(lambda: _open(Path(bundle_root) / runs, output_dir, resume, present))


def _open(
    runs: Path, output_dir: str | os.PathLike[str] | None, resume: bool | str, present: Mapping[str, Any]
) -> RunFolder:
    existed = output_dir is not None and Path(output_dir).exists()
    folder = _pick(runs, output_dir, resume)
    if folder.resumed and (recorded := config_of_checkpoint(folder.path, folder.last_checkpoint)) is not None:
        check_same_settings(recorded, present, crops=peek(folder.last_checkpoint, "crops_per_step"))
    lock_folder(folder.path, made=not folder.resumed and not existed)
    if output_dir is None or folder.resumed:
        return folder
    return _pick(runs, output_dir, resume)  # now nobody else writes there


def _pick(runs: Path, output_dir: str | os.PathLike[str] | None, resume: bool | str) -> RunFolder:
    if not isinstance(resume, bool):
        return _named_run(Path(resume), output_dir)

    if output_dir is not None:
        folder = RunFolder(Path(output_dir))
        if resume and folder.last_checkpoint.is_file():
            return RunFolder(folder.path, resumed=True)
        if resume and folder.holds_epoch():
            raise UserError(
                f'"{output_dir}" has no checkpoints/last.pt to resume, but a run\'s results: put the checkpoint back '
                "there, or give another --output_dir to start a new run"
            )
        if resume:
            logger.warning("no checkpoint in %s yet: starting from the beginning", folder.path)
        elif folder.holds_run():
            raise UserError(
                f'"{output_dir}" already holds a run: add --resume to continue it, '
                "or give another --output_dir to start a new one"
            )
        elif folder.model_files.exist():
            raise UserError(f'"{output_dir}" holds a model, which a run would write over: give another --output_dir')
        return folder

    if resume:
        newest = newest_run(runs)
        if newest is None:
            raise UserError(f'no run to resume in "{runs}": leave --resume out to start a new run')
        return newest

    # the folder is made at once, so that two runs that start in the same second do not share it
    path = free_path(runs / datetime.now().astimezone().strftime("%Y-%m-%d_%H-%M-%S"))
    path.mkdir(parents=True)
    return RunFolder(path)


def newest_run(runs: Path) -> RunFolder | None:
    """The run with the newest checkpoint in a folder of runs; None if there is none."""
    found = sorted(runs.glob("*/checkpoints/last.pt"), key=lambda file: file.stat().st_mtime)
    return RunFolder(found[-1].parents[1], resumed=True) if found else None


def _named_run(path: Path, output_dir: str | os.PathLike[str] | None) -> RunFolder:
    if output_dir is not None and Path(output_dir).absolute() != path.absolute():
        raise UserError(f'--resume "{path}" and --output_dir "{output_dir}" name two folders: give only one')
    folder = RunFolder(path, resumed=True)
    if not folder.last_checkpoint.is_file():
        raise UserError(
            f'nothing to resume in "{path}": it has no checkpoints/last.pt; '
            "name the folder of a run, or leave --resume out to start a new one"
        )
    return folder


def _decided_by_rank_0(decide: Callable[[], RunFolder]) -> RunFolder:
    """What `decide` returns or raises on rank 0, on every rank."""
    if not is_distributed():
        return decide()
    decision: list[RunFolder | UserError | None] = [None]
    if this_rank() == 0:
        try:
            decision[0] = decide()
        except UserError as error:
            decision[0] = error
    dist.broadcast_object_list(decision, src=0)
    if isinstance(decision[0], RunFolder):
        return decision[0]
    assert decision[0] is not None
    raise decision[0]
