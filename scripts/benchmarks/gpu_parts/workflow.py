# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""Runs a config of the bundle as a user does, and times its steps."""

from __future__ import annotations

import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from gpu_parts.context import Context
from gpu_parts.data import BODIES
from ignite.engine import Engine, Events
from monai.bundle import ConfigWorkflow

__all__ = ["CONFIGS", "StepClock", "finish", "make_workflow", "take_stored_bodies"]

CONFIGS = Path(__file__).parents[3] / "configs"


def make_workflow(context: Context, files: list[str], **overrides: Any) -> ConfigWorkflow:
    """A workflow of these configs that writes below the part's folder and takes the bodies that lie beside the crops.

    Every id and component is the config's own but for the step that finds the body, which would need ITK, and for the
    store, where blosc2 is not installed.
    """
    assert context.data is not None  # parts without data are not started
    if find_spec("blosc2") is None:
        overrides["store"] = "plain"
    flow = ConfigWorkflow(
        [str(CONFIGS / file) for file in files],
        workflow_type="train",
        run_id="training",
        bundle_root=str(context.work),
        device=context.device.type,
        num_workers=context.workers,
        **overrides,
    )
    take_stored_bodies(flow, "prepare#transforms", context.data)
    flow.initialize()
    return flow


def take_stored_bodies(flow: ConfigWorkflow, transforms: str, data: Path) -> None:
    """Puts the bodies that lie beside the crops in place of the step that finds them, which needs ITK.

    Args:
        flow: not yet initialized.
        transforms: id of the list that has the step.
        data: folder that `--make_data` has written.
    """
    steps = flow.parser.get(transforms)
    place = next(i for i, step in enumerate(steps) if str(step.get("_target_", "")).endswith("Foregroundd"))
    stored = {"_target_": "gpu_parts.data.StoredBodyd", "keys": "image", "folder": str(data / BODIES)}
    flow.parser.set(stored, f"{transforms}#{place}")


def finish(flow: ConfigWorkflow) -> Path:
    """Runs a workflow to its end; its run folder."""
    flow.run()
    flow.finalize()
    path: Path = flow.parser.get_parsed_content("run_folder").path
    return path


class StepClock:
    """Times a trainer's steps, and how long it waits for data.

    In the epochs of `waiting_epochs` the GPU is waited for before each batch is asked for, so that what the loader then
    takes is time in which the GPU has nothing to do. In all others nothing is changed.

    Args:
        context: knows the device.
        waiting_epochs: numbers of epochs, from 1.
    """

    def __init__(self, context: Context, waiting_epochs: tuple[int, ...] = ()) -> None:
        self.context, self.waiting_epochs = context, waiting_epochs
        self.done: dict[int, list[float]] = {}
        self.waited: dict[int, list[float]] = {}
        self.losses: list[torch.Tensor] = []
        self._asked = 0.0

    def attach(self, engine: Engine) -> None:
        """Registers with the trainer."""
        engine.add_event_handler(Events.GET_BATCH_STARTED, self._ask)
        engine.add_event_handler(Events.GET_BATCH_COMPLETED, self._get)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._finish)

    def _ask(self, engine: Engine) -> None:
        if engine.state.epoch in self.waiting_epochs:
            self.context.synchronize()
        self._asked = time.perf_counter()

    def _get(self, engine: Engine) -> None:
        self.waited.setdefault(engine.state.epoch, []).append(time.perf_counter() - self._asked)

    def _finish(self, engine: Engine) -> None:
        self.losses.append(engine.state.output["loss"].detach())
        self.done.setdefault(engine.state.epoch, []).append(time.perf_counter())

    def step_ms(self, epoch: int) -> float:
        """Mean of an epoch's steps without its first few, which start loaders and pick kernels."""
        times = self.done[epoch]
        first = min(len(times) // 4, 10)
        return 1000 * (times[-1] - times[first]) / max(len(times) - 1 - first, 1)

    def waiting(self, epoch: int) -> float:
        """Share of an epoch's time that is spent on waiting for data, without its first few steps."""
        times, waits = self.done[epoch], self.waited[epoch]
        first = min(len(times) // 4, 10)
        return sum(waits[first + 1 : len(times)]) / max(times[-1] - times[first], 1e-9)

    def loss(self) -> list[float]:
        """The loss of every step."""
        return [float(loss) for loss in self.losses]
