# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""Part b: the time and memory of the encoder and of the whole step, the candidates taking turns.

Nothing here needs Triton or a compiler, whose faults could end the process: see part h.
"""

from __future__ import annotations

import gc
import statistics
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import limits
import speed
import torch
from gpu_parts.context import Context

__all__ = ["choose_kernels", "run", "take_turns", "time_cases"]

#: how many times as long as `cells` the dense encoder should take at 128^3, by the share that is masked
GOALS = {0.6: 1.8, 0.75: 3.0}
ENCODERS = ("cells", "dense", "dense channels-last", "spark", "masked", "minkowski")
STEPS = ("cells", "spark", "masked", "cells to half", "cells recomputing")
MODES = ("benchmark", "default", "deterministic")


def run(context: Context) -> None:
    """Times case after case while there is time, the most telling first."""
    speed.use_encoder(**context.settings.encoder)
    slowest = time_cases(context, _cases(context), ENCODERS, STEPS)
    if context.remaining() > slowest:
        context.table("choice of cuDNN's kernels", _modes(context))


def time_cases(
    context: Context, cases: Iterable[tuple[str, int, float]], encoders: Sequence[str], steps: Sequence[str]
) -> float:
    """Times the encoder that speed.py was told, case after case while there is time.

    Args:
        context: of the part.
        cases: "encoder" or "step", voxels per axis, and the share that is masked.
        encoders: candidates for the encoder.
        steps: candidates for the whole step.

    Returns:
        Seconds that the slowest case took.
    """
    rows: list[dict[str, Any]] = []
    ceilings = _ceilings(context)
    context.table("what the device can do", [ceilings])
    slowest = 0.0
    for what, size, ratio in cases:
        if context.remaining() < 1.5 * slowest:
            context.note(f"no time for {what}, {size}^3, {ratio:.0%} masked, and what follows")
            break
        before = context.remaining()
        rows += _measure(context, what, size, ratio, encoders if what == "encoder" else steps)
        slowest = max(slowest, before - context.remaining())
        context.table("times", rows)
        context.table("dense ÷ cells", _compare(rows))
        context.table("distance to the limits on paper (scripts/benchmarks/limits.py)", _distances(rows, ceilings))
        context.say(f"{what}, {size}^3, {ratio:.0%} masked timed")
    return slowest


def _cases(context: Context) -> Iterator[tuple[str, int, float]]:
    first, *others = context.settings.sizes
    ratios = context.settings.ratios
    yield from (("encoder", first, ratio) for ratio in ratios)
    yield from (("step", first, ratio) for ratio in ratios[:2])
    for size in others:
        yield from (("encoder", size, ratio) for ratio in ratios)
        yield from (("step", size, ratio) for ratio in ratios[:1])


def _measure(context: Context, what: str, size: int, ratio: float, candidates: Sequence[str]) -> list[dict[str, Any]]:
    """One row for each candidate; one that cannot run has its error for a time."""
    choose_kernels("benchmark")
    case = speed.Case(size, ratio, context.settings.batch, context.device)
    about = {"size": size, "masked": ratio, "batch": context.settings.batch}
    return [{**about, **row} for row in take_turns(context, what, candidates, case)]


def take_turns(context: Context, what: str, candidates: Sequence[str], case: speed.Case) -> list[dict[str, Any]]:
    """One row for each candidate: median, fastest and slowest of its passes, and its peak memory, or its error."""
    rows: dict[str, dict[str, Any]] = {}
    steps: dict[str, Callable[[], None]] = {}
    for candidate in candidates:
        rows[candidate] = {"what": what, "candidate": candidate}
        try:
            steps[candidate] = speed.WHAT[what](candidate, case)
            rows[candidate]["peak MiB"] = _peak(context, steps[candidate])
        except Exception as error:  # noqa: BLE001 - out of memory, no library: the others count
            steps.pop(candidate, None)
            rows[candidate]["error"] = _first_line(error)
            _free(context)
    times: dict[str, list[float]] = {candidate: [] for candidate in steps}
    for _ in range(context.settings.repeats):
        for candidate, step in steps.items():
            times[candidate].append(1000 * speed.seconds(step, context.device))
    for candidate, taken in times.items():
        rows[candidate] |= {"ms": statistics.median(taken), "fastest": min(taken), "slowest": max(taken)}
    _free(context)
    return list(rows.values())


def _peak(context: Context, step: Callable[[], None]) -> float | None:
    """MiB that two steps need beyond what there is before; they also warm up. None on a CPU."""
    if context.device.type != "cuda":
        step()
        return None
    _free(context)
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    for _ in range(2):
        step()
    context.synchronize()
    return (torch.cuda.max_memory_allocated() - before) / 2**20


def _free(context: Context) -> None:
    gc.collect()
    if context.device.type == "cuda":
        torch.cuda.empty_cache()


def _first_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0][:200] if str(error).strip() else ''}"


def _compare(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """How many times as long as `cells` the others take in each case; of both dense formats the faster one counts."""
    table = []
    for what, size, ratio in dict.fromkeys((r["what"], r["size"], r["masked"]) for r in rows):
        same = [r for r in rows if (r["what"], r["size"], r["masked"]) == (what, size, ratio)]
        ms = {r["candidate"]: r["ms"] for r in same if "ms" in r}
        if "cells" not in ms:
            continue
        dense = min((ms[name] for name in ("dense", "dense channels-last") if name in ms), default=None)
        row = {"what": what, "size": size, "masked": ratio, "cells ms": ms["cells"], "ideal": 1 / (1 - ratio)}
        if dense is not None:
            row |= {"dense ms": dense, "dense ÷ cells": dense / ms["cells"]}
            if size == 128 and ratio in GOALS:
                row |= {"goal": GOALS[ratio], "reached": dense / ms["cells"] >= GOALS[ratio]}
        others = ("cells fused", "spark", "masked", "auto", "minkowski")
        table.append(row | {f"{name} ÷ cells": ms[name] / ms["cells"] for name in others if name in ms})
    return table


def _ceilings(context: Context) -> dict[str, float]:
    """The device's bandwidth, by a copy, and its rate in bfloat16, by a product of two matrices of random numbers."""
    values = torch.empty(context.settings.copied_mib * 2**18, device=context.device)
    copy = torch.empty_like(values)
    matrix = torch.randn(context.settings.matrix, context.settings.matrix, device=context.device, dtype=torch.bfloat16)
    seconds = {}
    for name, step in (("copy", lambda: copy.copy_(values)), ("product", lambda: torch.mm(matrix, matrix))):
        for _ in range(3):
            step()
        seconds[name] = statistics.median(speed.seconds(step, context.device) for _ in range(10))
    bandwidth, rate = 8 * values.numel() / seconds["copy"], 2 * len(matrix) ** 3 / seconds["product"]
    return {"TB/s": bandwidth / 1e12, "TFLOP/s in bfloat16": rate / 1e12}


def _distances(rows: Sequence[dict[str, Any]], ceilings: dict[str, float]) -> list[dict[str, Any]]:
    """How many times as long as their least time on this device the encoder's candidates take."""
    layers = limits.layers({"name": speed.USUAL, **speed.ENCODER})
    rates = ceilings["TB/s"] * 1e12, ceilings["TFLOP/s in bfloat16"] * 1e12
    table = []
    for row in rows:
        kind = "fused" if row["candidate"] == "cells fused" else row["candidate"].partition(" ")[0]
        if row["what"] != "encoder" or "ms" not in row or kind not in limits.METHODS:
            continue
        case = limits.Case(row["size"], row["batch"], speed.CELL, row["masked"])
        least = {found["method"]: found["whole ms"] for found in limits.totals(limits.limits(layers, case, *rates))}
        about = {name: row[name] for name in ("size", "masked", "candidate", "ms")}
        table.append({**about, "least ms": least[kind], "ms ÷ least": row["ms"] / least[kind]})
    return table


def choose_kernels(mode: str) -> None:
    """How cuDNN picks its kernels from here on, one of `MODES`."""
    torch.backends.cudnn.benchmark = mode == "benchmark"
    torch.backends.cudnn.deterministic = mode == "deterministic"


def _modes(context: Context) -> list[dict[str, Any]]:
    """The time when cuDNN measures its kernels, picks them by rule, or must repeat bit by bit, as in training."""
    case = speed.Case(context.settings.sizes[0], context.settings.ratios[0], context.settings.batch, context.device)
    rows = []
    for what, candidate in (("encoder", "cells"), ("encoder", "dense channels-last"), ("step", "cells")):
        row: dict[str, Any] = {"what": what, "candidate": candidate, "size": context.settings.sizes[0]}
        for mode in MODES:
            choose_kernels(mode)
            step = speed.WHAT[what](candidate, case)
            for _ in range(2):
                step()
            times = [1000 * speed.seconds(step, context.device) for _ in range(context.settings.repeats)]
            row[f"{mode} ms"] = statistics.median(times)
            _free(context)
        rows.append(row)
    return rows
