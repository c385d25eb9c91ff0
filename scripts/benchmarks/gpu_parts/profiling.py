# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""Part c: where the time of `cells` goes, and which way to convolve is fastest at which level."""

from __future__ import annotations

import re
import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import speed
import torch
from gpu_parts.context import Context
from gpu_parts.timing import choose_kernels
from torch.autograd import DeviceType  # type: ignore[attr-defined]  # not in its __all__
from torch.profiler import ProfilerActivity, profile

from bundle.cells import Triple
from bundle.sparse import CellLayout
from bundle.sparse.convolution.methods import METHODS, convolve
from bundle.sparse.windows import Window

__all__ = ["profile_cells", "random_blocks", "run", "time_methods"]

STEPS = 3
#: kind of work by the name of a kernel (or of an operation on a CPU); the first that fits counts
KINDS = {
    "gathers": r"index|gather|scatter|nonzero|embedding|DeviceSelect",
    "norms": r"batch_?norm|group_?norm|bn_|layer_?norm|welford|moments",
    "convolutions": r"conv|cudnn|xmma|cutlass|gemm|wgrad|dgrad|fprop|implicit|matmul|addmm|::mm|nvjet|winograd|mkldnn",
    "optimizer": r"multi_tensor|adam|foreach",
    "copies": r"memcpy|memset|copy|fill|zero_|cat|nchwtonhwc|nhwctonchw|transpose",
    "elementwise": r"elementwise|vectorized|relu|threshold|add|mul|where|sum|mean|reduce",
}
LAUNCHES = ("cudaLaunchKernel", "cudaLaunchKernelExC", "cuLaunchKernel", "cuLaunchKernelEx")
WAITS = (
    "cudaStreamSynchronize",
    "cudaDeviceSynchronize",
    "cudaEventSynchronize",
    "cudaMemcpyAsync",
    "aten::item",
    "aten::_local_scalar_dense",
    "aten::nonzero",
)


def run(context: Context) -> None:
    """Profiles the encoder and the whole step, then times every way to convolve at every level."""
    speed.use_encoder(**context.settings.encoder)
    case = profile_cells(context)
    methods = [name for name in METHODS if name != "fused"]  # its faults could end the process: part h has it
    context.table("ms of each way to convolve, forward and backward", time_methods(context, case, methods))


def profile_cells(context: Context) -> speed.Case:
    """Profiles the encoder that speed.py was told, and the whole step with it; the case that it did so on."""
    choose_kernels("benchmark")
    case = speed.Case(context.settings.sizes[0], context.settings.ratios[0], context.settings.batch, context.device)
    for what, pass_of in speed.WHAT.items():
        _profile(context, what, pass_of("cells", case))
        context.say(f"{what} profiled")
    return case


def _profile(context: Context, what: str, step: Callable[[], None]) -> None:
    for _ in range(2):
        step()
    context.synchronize()
    begin = time.perf_counter()
    for _ in range(STEPS):
        step()
    host = 1000 * (time.perf_counter() - begin) / STEPS
    context.synchronize()
    wall = 1000 * (time.perf_counter() - begin) / STEPS
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * (context.device.type == "cuda")
    with profile(activities=activities) as found:
        for _ in range(STEPS):
            step()
        context.synchronize()
    events = found.key_averages()
    kernels = _kernels(context, events)
    busy = sum(row["ms"] for row in kernels)
    by_kind: dict[str, float] = {}
    for row in kernels:
        by_kind[row["kind"]] = by_kind.get(row["kind"], 0.0) + row["ms"]
    shares = [
        {"kind": kind, "ms": ms, "share of the step": ms / wall, "times as fast without": wall / max(wall - ms, 1e-9)}
        for kind, ms in sorted(by_kind.items(), key=lambda item: -item[1])
    ]
    shares.append({"kind": "device idle", "ms": max(wall - busy, 0.0), "share of the step": max(1 - busy / wall, 0.0)})
    context.table(f"{what}: kinds of work, of {wall:.2f} ms a step", shares)
    context.table(f"{what}: top kernels", sorted(kernels, key=lambda row: -row["ms"])[:25])
    counts = {event.key: event.count / STEPS for event in events}
    waits = [
        {"call": event.key, "times a step": event.count / STEPS, "host ms a step": event.cpu_time_total / 1000 / STEPS}
        for event in events
        if event.key in WAITS
    ]
    launches = {"call": "launches", "times a step": sum(counts.get(name, 0) for name in LAUNCHES)}
    whole = {"call": "the whole step, until all is launched", "times a step": 1, "host ms a step": host}
    context.table(f"{what}: launches and host waits", [launches, whole, *waits])
    if not kernels:
        context.note(f"{what}: the profiler sees no kernels here")
        return
    gathers = by_kind.get("gathers", 0.0)
    context.note(
        f"{what}: gathers take {gathers:.2f} of {wall:.2f} ms; a kernel that reads the halo itself could save that at "
        f"most, {gathers / wall:.0%} of the step"
    )


def _kernels(context: Context, events: Any) -> list[dict[str, Any]]:
    """The time of each kernel of a step; of each operation on a CPU."""
    on_gpu = context.device.type == "cuda"
    rows: list[dict[str, Any]] = []
    for event in events:
        # an annotation, such as that of the optimizer's step, has the time of the kernels within it once more
        if on_gpu and (event.device_type != DeviceType.CUDA or event.is_user_annotation):
            continue
        ms = (event.self_device_time_total if on_gpu else event.self_cpu_time_total) / 1000 / STEPS
        if ms > 0:
            rows.append({"kernel": event.key[:90], "kind": _kind(event.key), "times": event.count / STEPS, "ms": ms})
    return rows


def _kind(name: str) -> str:
    return next((kind for kind, pattern in KINDS.items() if re.search(pattern, name, re.IGNORECASE)), "other")


def time_methods(context: Context, case: speed.Case, methods: Sequence[str]) -> list[dict[str, Any]]:
    """One row for each kind of layer of the encoder; the best method is what `auto` should find among them."""
    layout = CellLayout(case.drawn, case.device)
    dtype = torch.bfloat16 if context.device.type == "cuda" else torch.float32
    filters, levels = context.settings.encoder["init_filters"], len(context.settings.encoder["blocks_down"])
    rows: list[dict[str, Any]] = []
    for level in range(levels):
        channels, sites = filters * 2**level, speed.CELL // 2**level
        for stride, outputs in ((1, channels), (2, 2 * channels)):
            if stride == 2 and level == levels - 1:
                continue
            window = Window((3, 3, 3), (stride,) * 3, (1, 1, 1), (1, 1, 1))
            block = (sites, sites, sites)
            blocks = random_blocks(context, dtype, len(layout), channels, *block)
            weight = random_blocks(context, dtype, outputs, channels, 3, 3, 3)
            row: dict[str, Any] = {"level": level, "channels": f"{channels} to {outputs}", "block": sites}
            times = {}
            for method in methods:
                if not METHODS[method].applies(dtype, block, window):
                    continue
                if context.remaining() < 2:
                    return rows
                times[method] = _time(context, partial(_convolve, layout, block, window, method), blocks, weight)
            rows.append({**row, **times, "best": min(times, key=lambda name: times[name])})
    return rows


def _convolve(
    layout: CellLayout, block: Triple, window: Window, method: str, blocks: torch.Tensor, weight: torch.Tensor
) -> torch.Tensor:
    return convolve(blocks, weight, None, layout, block, window, method=method)


def random_blocks(context: Context, dtype: torch.dtype, *shape: int) -> torch.Tensor:
    """Random numbers, channels last, that want a gradient."""
    x = torch.randn(shape, device=context.device, dtype=dtype)
    return x.contiguous(memory_format=torch.channels_last_3d).requires_grad_()


def _time(
    context: Context, function: Callable[[torch.Tensor, torch.Tensor], torch.Tensor], *tensors: torch.Tensor
) -> float:
    """Median ms of a forward and a backward pass."""

    def both_ways() -> None:
        out = function(*tensors)
        torch.autograd.grad(out, tensors, out.detach())

    for _ in range(2):
        both_ways()
    repeats = max(1, context.settings.repeats // 2)
    return 1000 * statistics.median(speed.seconds(both_ways, context.device) for _ in range(repeats))
