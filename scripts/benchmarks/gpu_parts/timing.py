# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""Part b: the time and memory of the encoder and of the whole step, the candidates taking turns.

Nothing here needs Triton or a compiler, whose faults could end the process: see part h.
"""

from __future__ import annotations

import gc
import statistics
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import limits
import speed
import torch
from gpu_parts.context import Context

__all__ = ["Turns", "choose_kernels", "run", "take_turns", "time_cases"]

#: how many times as long as `cells` the dense encoder should take at 128^3, by the share that is masked
GOALS = {0.6: 1.8, 0.75: 3.0}
#: what the goals are about, before its rivals; each group has `cells`, which the others are compared with
ENCODERS = ("cells", "dense", "dense channels-last")
RIVALS = ("cells", "spark", "masked", "minkowski")
STEPS = ("cells", "spark", "masked")
VARIANTS = ("cells", "cells to half", "cells recomputing")
MODES = ("benchmark", "default", "deterministic")


def run(context: Context) -> None:
    """Times case after case while there is time, the most telling first."""
    speed.use_encoder(**context.settings.encoder)
    _, seconds = time_cases(context, _cases(context))
    if context.remaining() > seconds:
        context.table("choice of cuDNN's kernels", _modes(context))


@dataclass(frozen=True)
class Turns:
    """Candidates that take turns in one case.

    Attributes:
        what: "encoder" or "step".
        size: voxels per axis.
        ratio: share that is masked.
        candidates: `cells` among them.
    """

    what: str
    size: int
    ratio: float
    candidates: Sequence[str]

    def __str__(self) -> str:
        return f"{self.what}, {self.size}^3, {self.ratio:.0%} masked, {', '.join(self.candidates)}"


def time_cases(context: Context, cases: Iterable[Turns], of: str = "") -> tuple[list[dict[str, Any]], float]:
    """Times the encoder that speed.py was told, case after case while there is time.

    In the first case cuDNN tries its kernels for all layers, so it says little about the time of the next ones.

    Args:
        context: of the part.
        cases: the most telling first.
        of: what the tables' names begin with.

    Returns:
        One row for each candidate and case, and the seconds that a case may take.
    """
    rows: list[dict[str, Any]] = []
    ceilings = _ceilings(context)
    context.table("what the device can do", [ceilings])
    first, slowest = 0.0, 0.0
    for number, case in enumerate(cases):
        if context.remaining() < 1.5 * (slowest or first / 3):
            context.note(f"no time for {case}, and what follows")
            break
        before = context.remaining()
        rows += [{**row, "turns": number} for row in _measure(context, case)]
        took = before - context.remaining()
        first, slowest = first or took, max(slowest, took) if first else 0.0
        context.table(f"{of}times", rows)
        context.table(f"{of}dense ÷ cells", _compare(rows))
        context.table(f"{of}distance to the limits on paper (scripts/benchmarks/limits.py)", _distances(rows, ceilings))
        context.say(f"{case} timed")
    return rows, slowest or first


def _cases(context: Context) -> Iterator[Turns]:
    first, *others = context.settings.sizes
    ratios = context.settings.ratios
    yield from (Turns("encoder", first, ratio, ENCODERS) for ratio in ratios)
    yield from (Turns("step", first, ratio, STEPS) for ratio in ratios[:2])
    yield from (Turns("encoder", first, ratio, RIVALS) for ratio in ratios)
    yield Turns("step", first, ratios[0], VARIANTS)
    for size in others:
        yield from (Turns("encoder", size, ratio, (*ENCODERS, *RIVALS[1:])) for ratio in ratios)
        yield Turns("step", size, ratios[0], STEPS)


def _measure(context: Context, case: Turns) -> list[dict[str, Any]]:
    """One row for each candidate; one that cannot run has its error for a time."""
    choose_kernels("benchmark")
    batch = context.settings.batch
    about = {"size": case.size, "masked": case.ratio, "batch": batch}
    drawn = speed.Case(case.size, case.ratio, batch, context.device)
    return [{**about, **row} for row in take_turns(context, case.what, case.candidates, drawn)]


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
    """MiB that two steps need beyond what there is before, after one to warm up. None on a CPU."""
    step()  # cuDNN tries kernels that take more memory than the one that it then chooses
    if context.device.type != "cuda":
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
    """How many times as long as the `cells` of their turns the others take; of both dense formats the faster counts."""
    table: dict[tuple[str, int, float], dict[str, Any]] = {}
    for turns in dict.fromkeys(r["turns"] for r in rows):
        same = [r for r in rows if r["turns"] == turns]
        ms = {r["candidate"]: r["ms"] for r in same if "ms" in r}
        if "cells" not in ms:
            continue
        what, size, ratio = same[0]["what"], same[0]["size"], same[0]["masked"]
        new = {"what": what, "size": size, "masked": ratio, "cells ms": ms["cells"], "ideal": 1 / (1 - ratio)}
        row = table.setdefault((what, size, ratio), new)
        dense = min((ms[name] for name in ("dense", "dense channels-last") if name in ms), default=None)
        if dense is not None:
            row |= {"dense ms": dense, "dense ÷ cells": dense / ms["cells"]}
            if size == 128 and ratio in GOALS:
                row |= {"goal": GOALS[ratio], "reached": dense / ms["cells"] >= GOALS[ratio]}
        row |= {f"{name} ÷ cells": ms[name] / ms["cells"] for name in ms if name != "cells" and "dense" not in name}
    return list(table.values())


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
    table: dict[tuple[Any, ...], dict[str, Any]] = {}
    for row in rows:
        kind = "fused" if row["candidate"] == "cells fused" else row["candidate"].partition(" ")[0]
        if row["what"] != "encoder" or "ms" not in row or kind not in limits.METHODS:
            continue
        case = limits.Case(row["size"], row["batch"], speed.CELL, row["masked"])
        least = {found["method"]: found["whole ms"] for found in limits.totals(limits.limits(layers, case, *rates))}
        about = {name: row[name] for name in ("size", "masked", "candidate", "ms")}
        found_here = {**about, "least ms": least[kind], "ms ÷ least": row["ms"] / least[kind]}
        table.setdefault((row["size"], row["masked"], row["candidate"]), found_here)  # in its first turns
    return list(table.values())


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
