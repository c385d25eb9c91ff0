# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""Part d: pre-training as configs/preset_prod.yaml has it, on real crops: steps, waiting, loss, resume, loading."""

from __future__ import annotations

import statistics
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from gpu_parts.context import Context
from gpu_parts.data import IMAGES
from gpu_parts.workflow import StepClock, finish, make_workflow

__all__ = ["run"]

FILES = ["train.yaml", "preset_prod.yaml"]
STORES = ("blosc2", "plain")
#: seconds in which to load from each of them
LOADING = 5


def run(context: Context) -> None:
    """Trains in two epochs, compares runs with and without an interruption, then loads from each kind of store."""
    steps = context.settings.steps // 2
    clock = StepClock(context, waiting_epochs=(2,))
    _train(context, "long", steps, clock, val_interval=2)
    losses = clock.loss()
    few = max(1, len(losses) // 10)
    first, last = statistics.mean(losses[:few]), statistics.mean(losses[-few:])
    row: dict[str, Any] = {"steps": len(losses), "ms a step": clock.step_ms(1)}
    row |= {"ms a step, device waited for": clock.step_ms(2), "share of waiting for data": clock.waiting(2)}
    row |= {f"loss of the first {few}": first, f"loss of the last {few}": last, "falls": last < first}
    if context.device.type == "cuda":
        row["peak MiB"] = torch.cuda.max_memory_allocated() / 2**20
    context.table("training", [row])
    context.keep("losses", losses)
    context.say(f"{clock.step_ms(1):.0f} ms a step, loss {first:.3f} to {last:.3f}")
    _resume(context)
    stores = [store for store in STORES if store == "plain" or find_spec("blosc2") is not None]
    context.table("loading alone", [_load(context, store) for store in stores])


def _load(context: Context, store: str) -> dict[str, Any]:
    """How fast crops come from prepared volumes when nothing else is done, and how large these are on the disk."""
    assert context.data is not None
    cache = context.work / f"cache_{store}"
    flow = make_workflow(
        context,
        FILES,
        dataset_dir=str(context.data / IMAGES),
        cache_dir=str(cache),
        output_dir=str(context.work / f"loading_{store}"),
        store=store,
        **{"steps_per_epoch": context.settings.steps, **context.settings.train},
    )
    loader = flow.parser.get_parsed_content("train#dataloader")
    batches = iter(loader)
    next(batches)  # the processes have started
    begin, count = time.perf_counter(), 0
    for batch in batches:
        count += len(batch["image"])
        if time.perf_counter() - begin > min(LOADING, context.remaining()):
            break
    seconds = time.perf_counter() - begin
    flow.finalize()
    size = sum(file.stat().st_size for file in cache.rglob("*") if file.is_file())
    return {"store": store, "processes": context.workers, "crops a second": count / seconds, "MB": size / 1e6}


def _train(context: Context, name: str, steps: int, clock: StepClock | None = None, **overrides: Any) -> Path:
    assert context.data is not None
    given = {"epochs": 2, "steps_per_epoch": steps, "warmup_epochs": 0.2, **context.settings.train, **overrides}
    folder, cache = context.work / name, context.work / "cache"
    flow = make_workflow(
        context, FILES, dataset_dir=str(context.data / IMAGES), cache_dir=str(cache), output_dir=str(folder), **given
    )
    if clock is not None:
        clock.attach(flow.parser.get_parsed_content("train#trainer"))
    return finish(flow)


def _resume(context: Context) -> None:
    steps = context.settings.resume_steps
    whole, again = (_train(context, name, steps, val_interval=2) for name in ("whole", "again"))
    stopped: dict[str, Any] = {"val_interval": 2, "train#trainer#max_epochs": 1}
    _train(context, "part", steps, **stopped)
    part = _train(context, "part", steps, val_interval=2, resume=True)
    a, b, c = (torch.load(path / "checkpoints/last.pt", weights_only=True)["network"] for path in (whole, again, part))
    rows = [
        {"compared with one uninterrupted run": name, "bit for bit": _equal(a, other), "distance": _distance(a, other)}
        for name, other in (("a second one", b), ("one that was resumed", c))
    ]
    context.table("resume", rows)
    context.say("resume compared")


def _equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def _distance(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    """Of all weights, relative to their length."""
    one, two = (torch.cat([weights[key].double().flatten().cpu() for key in a]) for weights in (a, b))
    return float((one - two).norm() / one.norm())
