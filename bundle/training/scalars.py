# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""The metrics that are logged: loss terms, learning rate, throughput and memory, per iteration and per epoch."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

import ignite.distributed as idist
import torch
from ignite.engine import Engine, Events
from monai.utils.enums import CommonKeys
from torch.optim import Optimizer

from bundle.runs.distributed import gather
from bundle.training.partial_epoch import gathers

__all__ = ["Scalars", "latest_scalars"]


def latest_scalars(output: Mapping[str, Any] | Sequence[Any]) -> dict[str, float] | None:
    """The metrics of this iteration, for `output_transform` of MONAI's handlers; None if it has none."""
    return output.get("scalars") if isinstance(output, Mapping) else None


class Scalars:
    """Collects the metrics of an engine: the terms in its prediction (pre-training), or else its loss (fine-tuning).

    Every `interval` iterations, and in the first of an epoch, `engine.state.output["scalars"]` holds the iteration's
    metrics, and `engine.state.metrics` holds the epoch's when it ends: means over its crops and over all processes, as
    "<name>/<metric>". The metrics are every loss term and, when training,

    - learning_rate: of the first parameter group, as used in this iteration,
    - volumes_per_second, voxels_per_second: crops and their voxels, of all processes together,
    - peak_memory_mib: the most that PyTorch held on the GPU, or that this process held on a CPU; the largest process's.

    The terms stay on the device until one is asked for, so that a GPU waits for the host only every `interval`
    iterations. All processes need this handler; put it before those that read its metrics and before the one that
    steps the schedule.

    Args:
        name: the first part of the epoch metrics' names, such as "train" or "validation".
        interval: number of iterations between two that have metrics of their own.
        optimizer: given when training.
    """

    def __init__(self, *, name: str, interval: int = 1, optimizer: Optimizer | None = None) -> None:
        self.name, self.interval, self.optimizer = name, interval, optimizer
        # sums of terms times crops: iterations that have the same terms share a vector, and a count of crops
        self._sums: dict[tuple[str, ...], torch.Tensor] = {}
        self._crops: dict[tuple[str, ...], int] = {}
        self._epoch, self._window = _Throughput(), _Throughput()
        self._learning_rate = 0.0
        self._first = True
        self._before: Sequence[Mapping[str, Any]] = ()

    def attach(self, engine: Engine) -> None:
        """Registers with a trainer or an evaluator."""
        engine.add_event_handler(Events.EPOCH_STARTED, self._start)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._add)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._finish)
        if self.optimizer is not None:
            gathers(engine, self.name, self)

    def so_far(self) -> dict[str, Any]:
        """The sums of the epoch so far, for a checkpoint."""
        sums = [[list(names), values.tolist(), self._crops[names]] for names, values in self._sums.items()]
        return {"sums": sums, "learning_rate": self._learning_rate, "throughput": self._epoch.so_far()}

    def take_up(self, states: Sequence[Mapping[str, Any]]) -> None:
        """The next epoch begins with these sums."""
        self._before = states

    def _start(self, engine: Engine) -> None:
        self._sums, self._crops, self._first = {}, {}, True
        self._epoch, self._window = _Throughput(), _Throughput()
        for state in self._before:
            for names, values, crops in state["sums"]:
                key = tuple(names)
                summed = torch.tensor(values, dtype=torch.float64, device=engine.state.device)
                self._sums[key] = self._sums.get(key, 0) + summed
                self._crops[key] = self._crops.get(key, 0) + crops
            self._learning_rate = state["learning_rate"]
            self._epoch.take_up(**state["throughput"])
        self._before = ()

    def _add(self, engine: Engine) -> None:
        pred = engine.state.output[CommonKeys.PRED]
        has_terms = isinstance(pred, Mapping) and "terms" in pred
        terms: dict[str, torch.Tensor] = pred["terms"] if has_terms else {"loss": engine.state.output["loss"]}
        image: torch.Tensor = engine.state.output[CommonKeys.IMAGE]
        names, crops = tuple(sorted(terms)), image.shape[0]
        values = torch.stack([terms[name].detach().double() for name in names])
        self._sums[names] = self._sums.get(names, 0) + values * crops
        self._crops[names] = self._crops.get(names, 0) + crops
        first_of_epoch = self._first
        self._first = False
        for throughput in (self._epoch, self._window):
            throughput.add(crops, image[:, 0].numel())
        if self.optimizer is not None:
            self._learning_rate = float(self.optimizer.param_groups[0]["lr"])

        if first_of_epoch or engine.state.iteration % self.interval == 0:
            scalars = dict(zip(names, values.tolist(), strict=True))  # waits for the device
            if self.optimizer is not None:
                # no need to ask the other processes: all take the same number of crops in the same time
                rates = {name: rate * idist.get_world_size() for name, rate in self._window.rates().items()}
                scalars.update(self._state(engine.state.device), **rates)
            engine.state.output["scalars"] = scalars
            self._window = _Throughput()

    def _finish(self, engine: Engine) -> None:
        totals: dict[str, tuple[float, int]] = {}  # sum over crops, number of crops
        for names, values in self._sums.items():
            for name, value in zip(names, values.tolist(), strict=True):
                total, count = totals.get(name, (0.0, 0))
                totals[name] = total + value, count + self._crops[names]

        ranks = gather((totals, self._epoch.rates(), self._state(engine.state.device)))
        metrics = _average_over_ranks([rank_totals for rank_totals, _, _ in ranks])
        if self.optimizer is not None:
            metrics.update({name: max(state[name] for _, _, state in ranks) for name in ranks[0][2]})
            metrics.update({name: sum(rates[name] for _, rates, _ in ranks) for name in ranks[0][1]})
        engine.state.metrics.update({f"{self.name}/{name}": value for name, value in metrics.items()})

    def _state(self, device: torch.device) -> dict[str, float]:
        return {"learning_rate": self._learning_rate, "peak_memory_mib": _peak_memory_mib(device)}


def _average_over_ranks(ranks: Sequence[Mapping[str, tuple[float, int]]]) -> dict[str, float]:
    """Means over the crops of all processes, from each one's sum and number of crops; a term may be absent in some."""
    means = {}
    for name in sorted({name for totals in ranks for name in totals}):
        parts = [totals[name] for totals in ranks if name in totals]
        means[name] = sum(total for total, _ in parts) / sum(count for _, count in parts)
    return means


class _Throughput:
    """Counts crops and voxels since it was made."""

    def __init__(self) -> None:
        self.start = time.perf_counter()
        self.crops = self.voxels = 0

    def add(self, crops: int, voxels: int) -> None:
        self.crops += crops
        self.voxels += voxels

    def so_far(self) -> dict[str, Any]:
        return {"crops": self.crops, "voxels": self.voxels, "seconds": time.perf_counter() - self.start}

    def take_up(self, crops: int, voxels: int, seconds: float) -> None:
        self.add(crops, voxels)
        self.start = min(self.start, time.perf_counter() - seconds)  # of several processes: they ran at the same time

    def rates(self) -> dict[str, float]:
        seconds = time.perf_counter() - self.start
        return {"volumes_per_second": self.crops / seconds, "voxels_per_second": self.voxels / seconds}


def _peak_memory_mib(device: torch.device) -> float:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)  # macOS counts bytes, Linux KiB
