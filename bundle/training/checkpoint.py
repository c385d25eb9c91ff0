# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""The whole state of training, written after each epoch and restored by a resume."""

from __future__ import annotations

import logging
import math
from typing import Any

import torch
import torch.distributed as dist
from ignite.engine import Engine, Events
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from bundle.atomic import replace_file
from bundle.errors import UserError
from bundle.runs import RunFolder
from bundle.runs.checkpoint import load_network, read_checkpoint
from bundle.runs.distributed import gather, is_main_rank, unwrap
from bundle.runs.randomness import random_state, restore_random_state
from bundle.runs.recorded_config import newest_config
from bundle.training.same_data import SplitVolumes, check_same_volumes, volume_digests

__all__ = ["RunCheckpoint"]

logger = logging.getLogger(__name__)

# what the config sets in a schedule, and a resumed run may set anew; the rest of its state is where it has got to
_SCHEDULE_SETTINGS = (
    "base_lrs",
    "warmup_steps",
    "warmup_multiplier",
    "t_total",
    "end_lr",
    "cycles",
    "kind",
    "decoder_share",
)


class RunCheckpoint:
    """Writes `checkpoints/last.pt` after each epoch, and `best.pt` after each with the best validation so far.

    A checkpoint holds the network, optimizer, schedule, the random generators of every process, epoch, iteration, the
    best loss, the name of the run's file of settings, and digests of the volumes. It is written to a temporary file
    first, so a kill leaves the one before. It holds tensors and plain Python values only, and is read with
    `weights_only=True`.

    If the run folder is resumed, all of this is restored when the trainer starts; on a CPU the losses are then bit for
    bit those of a run that was never interrupted. Settings come from the config, the state from the checkpoint: a
    resumed run may have other learning rates, weight decay or more epochs (the schedule then stretches). Other volumes,
    or another number of processes, are refused before anything is changed.

    All processes need this handler. Put it after validation and all handlers that change the state.

    Args:
        run_folder: where to, and whether to resume.
        network: the trainable whole.
        optimizer: its optimizer.
        lr_scheduler: its schedule.
        validator: the engine that validates.
        key_metric: which of the validator's metrics tells the best epoch.
        higher_is_better: as of a Dice; else lower is better, as of a loss.
        volumes: the data, to compare a resume's with; None compares none.
    """

    def __init__(
        self,
        *,
        run_folder: RunFolder,
        network: nn.Module,
        optimizer: Optimizer,
        lr_scheduler: LRScheduler,
        validator: Engine | None = None,
        key_metric: str = "validation/reconstruction",
        higher_is_better: bool = False,
        volumes: SplitVolumes | None = None,
    ) -> None:
        self.run_folder, self.network = run_folder, unwrap(network)
        self.optimizer, self.lr_scheduler = optimizer, lr_scheduler
        self.validator, self.key_metric, self.sign = validator, key_metric, -1 if higher_is_better else 1
        self.best_loss, self.best_epoch = math.inf, 0
        self.volumes = {} if volumes is None else volume_digests(volumes)

    def attach(self, engine: Engine) -> None:
        """Registers with the trainer."""
        if self.run_folder.resumed:
            engine.add_event_handler(Events.STARTED, self._resume)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._save)

    def _save(self, engine: Engine) -> None:
        is_best = self._update_best(engine.state.epoch)
        random_states = gather(random_state(engine.state.device))
        if not is_main_rank():
            return
        checkpoint = {
            "network": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "lr_scheduler": self.lr_scheduler.state_dict(),
            "random_states": random_states,
            "epoch": engine.state.epoch,
            "iteration": engine.state.iteration,
            "best_loss": self.best_loss,
            "best_epoch": self.best_epoch,
            "volumes": list(self.volumes),
        }
        if (config := newest_config(self.run_folder.path)) is not None:
            checkpoint["config"] = config.name
        for path in [self.run_folder.best_checkpoint] * is_best + [self.run_folder.last_checkpoint]:
            with replace_file(path) as temporary, temporary.open("wb") as file:
                torch.save(checkpoint, file)

    def _update_best(self, epoch: int) -> bool:
        if self.validator is None or self.validator.state.epoch != epoch:
            return False
        loss = self.sign * self.validator.state.metrics[self.key_metric]
        is_best: bool = loss < self.best_loss
        if is_best:
            self.best_loss, self.best_epoch = loss, epoch
        return is_best

    def _resume(self, engine: Engine) -> None:
        path = self.run_folder.last_checkpoint
        checkpoint = read_checkpoint(path)
        try:
            self._check_processes(len(checkpoint["random_states"]))
            if self.volumes and checkpoint.get("volumes"):  # versions before 0.2.0 kept none
                check_same_volumes(path, checkpoint["volumes"], self.volumes)
            load_network(self.network, checkpoint["network"], path)
            _load_optimizer(self.optimizer, checkpoint["optimizer"])
            _load_schedule(self.lr_scheduler, checkpoint["lr_scheduler"])
            restore_random_state(checkpoint["random_states"], engine.state.device)
            engine.state.epoch, engine.state.iteration = checkpoint["epoch"], checkpoint["iteration"]
            self.best_loss, self.best_epoch = checkpoint["best_loss"], checkpoint["best_epoch"]
        except (KeyError, TypeError, ValueError) as error:
            if isinstance(error, UserError):
                raise
            raise UserError(f"{path} is no checkpoint of this training ({error}): resume another run") from error

        epoch, last_epoch = engine.state.epoch, engine.state.max_epochs
        if engine.state.iteration != epoch * engine.state.epoch_length:
            raise UserError(
                f"{path} had {checkpoint['iteration'] // epoch} iterations per epoch and this run has "
                f"{engine.state.epoch_length}: resume with the same data, batch size and number of processes"
            )
        if epoch >= last_epoch:
            logger.info("%s is finished: %d of %d epochs; raise --epochs to go on", path, epoch, last_epoch)
            engine.terminate(skip_completed=True)
        else:
            logger.info("resuming %s after epoch %d of %d", self.run_folder.path, epoch, last_epoch)

    def _check_processes(self, before: int) -> None:
        now = dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1
        if now != before:
            raise UserError(
                f"{self.run_folder.path} was trained by {before} processes, and this command has {now}: resume it with "
                f"{'torchrun --nproc_per_node=' + str(before) if before > 1 else 'one process, without torchrun'}, or "
                "leave --resume out to start a new run"
            )


def _load_optimizer(optimizer: Optimizer, saved: dict[str, Any]) -> None:
    """Takes over the moments; the learning rate is that of the same place on the schedule of the present config."""
    settings = [{name: value for name, value in group.items() if name != "params"} for group in optimizer.param_groups]
    optimizer.load_state_dict(saved)
    for group, present in zip(optimizer.param_groups, settings, strict=True):
        change = present["initial_lr"] / group["initial_lr"]  # exactly 1 if nothing was changed
        group.update(present, lr=group["lr"] * change)


def _load_schedule(lr_scheduler: LRScheduler, saved: dict[str, Any]) -> None:
    # a longer run must not keep the old t_total: after it, the cosine would turn upwards again
    present = lr_scheduler.state_dict()
    lr_scheduler.load_state_dict({**saved, **{name: present[name] for name in _SCHEDULE_SETTINGS if name in present}})
