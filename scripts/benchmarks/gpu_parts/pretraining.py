# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""Part f: weights by the recipe of the day, as many steps as fit into the time that is left.

It is that of scripts/studies/people.md: a pretext segmentation beside reconstruction at full resolution, and features
that are kept apart.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from gpu_parts.context import Context
from gpu_parts.data import IMAGES
from gpu_parts.workflow import StepClock, finish, make_workflow

__all__ = ["run"]

FILES = ["train.yaml"]
#: what the study set beside the files; a GPU has room for more crops of more voxels than its one CPU core
RECIPE = {
    "encoder#init_filters": 16,
    "encoder#blocks_down": [1, 2, 2, 1, 1],
    "spacing": [1.25, 1.25, 1.25],
    "crop_size": [96, 96, 96],
    "batch_size": 4,
    "lr": 5.0e-4,
    "pretext_classes#file": "$@run_folder.path.parent / 'pretext_classes.json'",  # fitted once for both runs
    "pretext_classes#keep": True,
}
EPOCHS = 3
#: of the time left: the rest is for the validation and the files at the end
SHARE = 0.75


def run(context: Context) -> None:
    """Estimates the time of a step, trains, and copies the weights to the results."""
    trial = StepClock(context)
    _train(context, "trial", 1, context.settings.trial_steps, trial)
    milliseconds = trial.step_ms(1)
    fits = int(SHARE * max(context.remaining(), 0.0) * 1000 / milliseconds)
    steps = min(fits, context.settings.most_steps) // EPOCHS
    if steps < 1:
        context.note(f"no time for weights: a step takes {milliseconds:.0f} ms")
        return
    context.say(f"{EPOCHS * steps} steps of {milliseconds:.0f} ms")
    clock = StepClock(context)
    folder = _train(context, "weights", EPOCHS, steps, clock)
    losses = clock.loss()
    few = max(1, len(losses) // 20)
    row = {"steps": len(losses), "ms a step": clock.step_ms(EPOCHS)}
    row |= {"loss at first": sum(losses[:few]) / few, "loss at last": sum(losses[-few:]) / few}
    row["share of the host waiting for data"] = clock.waiting(EPOCHS)
    context.table("weights", [row])
    context.keep("losses", losses)
    for file in sorted([*folder.glob("model*.pt"), *folder.glob("model*.json")]):
        shutil.copy(file, context.output / file.name)
    context.note("the weights come from a few crops: they show that the recipe runs, no more")


def _train(context: Context, name: str, epochs: int, steps: int, clock: StepClock) -> Path:
    assert context.data is not None
    given: dict[str, Any] = {"warmup_epochs": 0.5, "val_interval": epochs, **RECIPE, **context.settings.recipe}
    flow = make_workflow(
        context,
        FILES,
        dataset_dir=str(context.data / IMAGES),
        cache_dir=str(context.work / "resampled"),
        output_dir=str(context.work / name),
        epochs=epochs,
        steps_per_epoch=steps,
        **given,
    )
    clock.attach(flow.parser.get_parsed_content("train#trainer"))
    return finish(flow)
