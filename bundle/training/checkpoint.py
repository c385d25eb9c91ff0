# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""The whole state of training, written after each epoch, within it where asked, and restored by a resume."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from typing import Any, Protocol

import torch
from ignite.engine import Engine, Events
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler

from bundle.atomic import replace_file
from bundle.errors import Preempted, UserError
from bundle.ranks import this_rank, world_size
from bundle.runs import RunFolder
from bundle.runs.checkpoint import load_network, read_checkpoint
from bundle.runs.distributed import gather, is_main_rank, unwrap
from bundle.runs.randomness import random_state, restore_random_state
from bundle.runs.recorded_config import newest_config
from bundle.training.partial_epoch import gathered_so_far, take_up
from bundle.training.same_data import SplitVolumes, check_same_volumes, report_changes, volume_digests
from bundle.training.stop_request import StopRequest

__all__ = ["HasState", "RunCheckpoint"]

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


class HasState(Protocol):
    """What a checkpoint can keep: its state is tensors and plain Python values."""

    def state_dict(self) -> dict[str, Any]:
        """The state."""

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Goes on from a state."""


class RunCheckpoint:
    """Writes `checkpoints/last.pt` after each epoch, and `best.pt` after each with the best validation so far.

    A checkpoint holds the network, optimizer, schedule, the random generators of every process, epoch, iteration, the
    best loss, the name of the run's file of settings, and digests of the volumes. Within an epoch it also holds what
    the epoch's means are made of. It is written to a temporary file first, so a kill leaves the one before. It holds
    tensors and plain Python values only, and is read with `weights_only=True`.

    SIGTERM and SIGUSR1, which a scheduler sends before it takes the machine away, let the step end; then the checkpoint
    is written and the run ends by `Preempted`. A step is the last of its epoch: then the epoch is validated first.

    If the run folder is resumed, all of this is restored when the trainer starts; on a CPU the losses are then bit for
    bit those of a run that was never interrupted. Settings come from the config, the state from the checkpoint: a
    resumed run may have other learning rates, weight decay or more epochs (the schedule then stretches), and another
    number of processes, provided that a step takes the same number of crops in all. Other volumes are refused before
    anything is changed, unless `volumes_may_change`.

    All processes need this handler. Put it after validation and all handlers that change the state.

    Args:
        run_folder: where to, and whether to resume.
        network: the trainable whole.
        optimizer: its optimizer.
        lr_scheduler: its schedule.
        validator: the engine that validates.
        key_metric: which of the validator's metrics tells the best epoch; the sum that is trained, unless it is set. A
            run that goes on with another one begins to look for the best anew.
        higher_is_better: as of a Dice; else lower is better, as of a loss.
        volumes: the data, to compare a resume's with; None compares none.
        save_minutes: time between two checkpoints, in minutes, beside those after the epochs; None writes those only.
        volumes_may_change: whether a resume goes on, with a report, where volumes have come or gone.
        further: what else has a state that a resume needs, by name, such as a teacher.
    """

    def __init__(
        self,
        *,
        run_folder: RunFolder,
        network: nn.Module,
        optimizer: Optimizer,
        lr_scheduler: LRScheduler,
        validator: Engine | None = None,
        key_metric: str = "validation/loss",
        higher_is_better: bool = False,
        volumes: SplitVolumes | None = None,
        save_minutes: float | None = None,
        volumes_may_change: bool = False,
        further: Mapping[str, HasState] | None = None,
    ) -> None:
        self.further = dict(further or {})
        self.run_folder, self.network = run_folder, unwrap(network)
        self.optimizer, self.lr_scheduler = optimizer, lr_scheduler
        self.validator, self.key_metric, self.sign = validator, key_metric, -1 if higher_is_better else 1
        self.best_loss, self.best_epoch = math.inf, 0
        self.volumes = {} if volumes is None else volume_digests(volumes)
        self.volumes_may_change = volumes_may_change
        self.request = StopRequest(save_minutes)
        self._random_states: list[dict[str, Any]] = []
        self._stops = False  # with the present epoch

    def attach(self, engine: Engine) -> None:
        """Registers with the trainer."""
        if self.run_folder.resumed:
            engine.add_event_handler(Events.STARTED, self._resume)
            engine.add_event_handler(Events.GET_BATCH_STARTED, self._restore_again)
        engine.add_event_handler(Events.STARTED, self._start)
        engine.add_event_handler(Events.EPOCH_STARTED, self._before_epoch)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._after_step)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._after_epoch)
        engine.add_event_handler(Events.COMPLETED, self._end)

    def _start(self, engine: Engine) -> None:  # noqa: ARG002 - the signature of a handler
        self.request.start()

    def _end(self, engine: Engine) -> None:  # noqa: ARG002 - the signature of a handler
        self.request.end()

    def _after_step(self, engine: Engine) -> None:
        state = engine.state
        if state.iteration == state.epoch * state.epoch_length:
            return  # the epoch's own checkpoint comes after its validation
        wanted = self.request.agree()
        if wanted.save:
            self._write(engine, epoch=state.epoch - 1)
        if wanted.stop:
            self._stop(engine)

    def _after_epoch(self, engine: Engine) -> None:
        self._save(engine)
        self._stops = engine.state.epoch < engine.state.max_epochs and self.request.agree().stop

    def _before_epoch(self, engine: Engine) -> None:
        """Stops after an epoch, when all that comes after its checkpoint is done, such as the product."""
        if self._stops:
            self._stop(engine, epoch=engine.state.epoch - 1)

    def _save(self, engine: Engine) -> None:
        """The checkpoint of a whole epoch."""
        is_best = self._update_best(engine.state.epoch)
        self._write(engine, epoch=engine.state.epoch, is_best=is_best)

    def _stop(self, engine: Engine, epoch: int | None = None) -> None:
        self.request.wait_for_all()
        received = self.request.received
        self.request.end(deaf=True)
        what = "another process" if received is None else received.name
        where = f"epoch {engine.state.epoch if epoch is None else epoch}, iteration {engine.state.iteration}"
        raise Preempted(
            f"stopped by {what} in {where}: {self.run_folder.last_checkpoint} is written, go on with --resume"
            if is_main_rank()
            else ""
        )

    def _write(self, engine: Engine, *, epoch: int, is_best: bool = False) -> None:
        within = engine.state.iteration > epoch * engine.state.epoch_length
        so_far = gathered_so_far(engine) if within else {}
        random_states, gathered = zip(*gather((random_state(engine.state.device), so_far)))
        self.request.saved()
        if not is_main_rank():
            return
        checkpoint = {
            "network": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "lr_scheduler": self.lr_scheduler.state_dict(),
            "random_states": list(random_states),
            "gathered": list(gathered) if within else [],
            "epoch": epoch,
            "iteration": engine.state.iteration,
            "epoch_length": engine.state.epoch_length,
            "crops_per_step": world_size() * _crops(engine),
            "best_loss": self.best_loss,
            "best_epoch": self.best_epoch,
            "key_metric": self.key_metric,
            "volumes": list(self.volumes),
        }
        if self.further:
            checkpoint["further"] = {name: owner.state_dict() for name, owner in self.further.items()}
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
            self._check_crops(engine, checkpoint)
            if self.volumes and checkpoint.get("volumes"):  # versions before 0.2.0 kept none
                if self.volumes_may_change:
                    report_changes(path, checkpoint["volumes"], self.volumes)
                else:
                    check_same_volumes(path, checkpoint["volumes"], self.volumes)
            self._check_further(checkpoint)
            load_network(self.network, checkpoint["network"], path)
            for name, owner in self.further.items():
                owner.load_state_dict(checkpoint["further"][name])
            _load_optimizer(self.optimizer, checkpoint["optimizer"])
            _load_schedule(self.lr_scheduler, checkpoint["lr_scheduler"])
            restore_random_state(checkpoint["random_states"], engine.state.device)
            engine.state.epoch, engine.state.iteration = checkpoint["epoch"], checkpoint["iteration"]
            if checkpoint.get("key_metric", self.key_metric) == self.key_metric:  # versions before 0.2.0 kept no name
                self.best_loss, self.best_epoch = checkpoint["best_loss"], checkpoint["best_epoch"]
            take_up(engine, checkpoint.get("gathered", []), this_rank(), world_size())
        except (KeyError, TypeError, ValueError) as error:
            if isinstance(error, UserError):
                raise
            raise UserError(f"{path} is no checkpoint of this training ({error}): resume another run") from error

        epoch, last_epoch = engine.state.epoch, engine.state.max_epochs
        length = checkpoint.get("epoch_length") or checkpoint["iteration"] // max(1, epoch)
        if length != engine.state.epoch_length or engine.state.iteration // length != epoch:
            raise UserError(
                f"{path} had {length} iterations per epoch and this run has "
                f"{engine.state.epoch_length}: resume with the same data, batch size and number of processes"
            )
        within = engine.state.iteration % length
        self._random_states = checkpoint["random_states"] if within else []
        if epoch >= last_epoch:
            logger.info("%s is finished: %d of %d epochs; raise --epochs to go on", path, epoch, last_epoch)
            engine.terminate(skip_completed=True)
        elif within:
            place = f"{self.run_folder.path} within epoch {epoch + 1} of {last_epoch}"
            logger.info("resuming %s, after iteration %d of %d", place, within, length)
        else:
            logger.info("resuming %s after epoch %d of %d", self.run_folder.path, epoch, last_epoch)

    def _restore_again(self, engine: Engine) -> None:
        """Within an epoch the loader, begun anew, has drawn a seed that the run which was not stopped did not draw."""
        if self._random_states:
            restore_random_state(self._random_states, engine.state.device)
            self._random_states = []

    def _check_further(self, checkpoint: dict[str, Any]) -> None:
        """Refuses a checkpoint of another kind of training, before anything is changed."""
        saved, present = set(checkpoint.get("further", {})), set(self.further)
        if saved != present:
            lacks = f"lacks the {' and '.join(sorted(present - saved))}" if present - saved else ""
            has = f"has a {' and a '.join(sorted(saved - present))}" if saved - present else ""
            raise UserError(
                f"{self.run_folder.last_checkpoint} is of another kind of training and {lacks or has}: resume it with "
                "the configs that it was started with, or leave --resume out to start a new run"
            )

    def _check_crops(self, engine: Engine, checkpoint: dict[str, Any]) -> None:
        """Refuses another number of crops per step: then the rest of the training would be another one."""
        before, now, crops = len(checkpoint["random_states"]), world_size(), _crops(engine)
        crops_before = checkpoint.get("crops_per_step", before * crops)  # versions before 0.2.0 kept no number
        if now * crops == crops_before and (crops or now == before):
            if now != before:
                logger.info(
                    "trained by %d processes before, by %d now, on %d crops per step", before, now, crops_before
                )
            return
        folder = self.run_folder.path
        if now != before:
            raise UserError(
                f"{folder} was trained by {before} processes, and this command has {now}: resume it with "
                f"{'torchrun --nproc_per_node=' + str(before) if before > 1 else 'one process, without torchrun'}, or "
                f"so that a step takes {crops_before} crops in all, or leave --resume out to start a new run"
            )
        raise UserError(
            f"{folder} was trained on {crops_before} crops per step, and this command has {now * crops}: "
            "resume it with as many, or leave --resume out to start a new run"
        )


def _crops(engine: Engine) -> int:
    """Crops per step of this process; 0 where the loader does not tell."""
    return getattr(engine.state.dataloader, "batch_size", None) or 0


def _load_optimizer(optimizer: Optimizer, saved: dict[str, Any]) -> None:
    """Takes over the moments; the learning rate is that of the same place on the schedule of the present config."""
    settings = [{name: value for name, value in group.items() if name != "params"} for group in optimizer.param_groups]
    optimizer.load_state_dict(saved)
    for group, present in zip(optimizer.param_groups, settings, strict=True):
        if not group["initial_lr"]:  # of a rate of 0 no share of the schedule is known: it takes its present place
            group.update(present)
            continue
        change = present["initial_lr"] / group["initial_lr"]  # exactly 1 if nothing was changed
        group.update(present, lr=group["lr"] * change)


def _load_schedule(lr_scheduler: LRScheduler, saved: dict[str, Any]) -> None:
    # a longer run must not keep the old t_total: after it, the cosine would turn upwards again
    present = lr_scheduler.state_dict()
    lr_scheduler.load_state_dict({**saved, **{name: present[name] for name in _SCHEDULE_SETTINGS if name in present}})
    if any(saved.get(name) != present.get(name) for name in _SCHEDULE_SETTINGS):
        # the optimizer has the rate of the old schedule, and would take the next step with it
        if isinstance(lr_scheduler, LambdaLR):  # whose get_lr warns outside of a step
            pairs = zip(lr_scheduler.base_lrs, lr_scheduler.lr_lambdas, strict=True)
            rates = [base * factor(lr_scheduler.last_epoch) for base, factor in pairs]
        else:
            rates = lr_scheduler.get_lr()
        for group, rate in zip(lr_scheduler.optimizer.param_groups, rates, strict=True):
            group["lr"] = rate
        lr_scheduler._last_lr = rates  # noqa: SLF001 - get_last_lr has no counterpart
