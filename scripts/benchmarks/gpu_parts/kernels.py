# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""Part h: what needs Triton. The method fused, for both encoders, and `auto`, which tries it.

It is a part of its own since a kernel that reads past its memory takes all that follows in its process with it.
"""

from __future__ import annotations

import importlib.util
import statistics
from typing import Any

import speed
import torch
from gpu_parts.context import Context
from gpu_parts.profiling import random_blocks, time_methods
from gpu_parts.timing import Turns, choose_kernels, time_cases

from bundle.kernels import launch
from bundle.kernels.launch import Tiles
from bundle.sparse import CellLayout
from bundle.sparse.convolution.methods import METHODS
from bundle.sparse.windows import Window

__all__ = ["run"]

CANDIDATES = ("cells", "cells fused", "auto", "dense channels-last")
#: of a step's time, what `auto` must save to be worth its measurements
WORTH = 0.03
#: seconds that ResEnc-L takes about: Triton compiles for its numbers of channels
RESENC = 15
#: of the method fused, to be compared with what it chooses
TILES = (
    Tiles(64, 32, 32),
    Tiles(128, 32, 32, stages=4),
    Tiles(256, 32, 32, warps=8),
    Tiles(128, 64, 32),
    Tiles(128, 64, 64, warps=8),
    Tiles(256, 64, 32, warps=8),
    Tiles(64, 128, 64),
    Tiles(128, 128, 64, warps=8),
    Tiles(128, 128, 32, warps=8, stages=4),
)


def run(context: Context) -> None:
    """Times the most telling cases, every layer, ResEnc-L, and tiles of the method fused."""
    speed.use_encoder(**context.settings.encoder)
    size, ratios = context.settings.sizes[0], context.settings.ratios[:2]
    case = speed.Case(size, ratios[0], context.settings.batch, context.device)
    has_fused = METHODS["fused"].runs_on(context.device)
    if has_fused:
        _compile_fused(context, case)
    else:
        context.note("no method fused: Triton is not there or does not work here")
    candidates = [name for name in CANDIDATES if has_fused or name != "cells fused"]
    steps = [name for name in candidates if not name.startswith("dense")]
    cases = [Turns("encoder", size, ratios[0], candidates), Turns("step", size, ratios[0], steps)]
    rows, _ = time_cases(context, [*cases, *(Turns("encoder", size, ratio, candidates) for ratio in ratios[1:])])
    _advise(context, [row for row in rows if row["what"] == "step"])
    if has_fused:
        table = time_methods(context, case, ("blocks", "rows", "fused"))
        context.table("ms of each way to convolve, forward and backward", table)
        _resenc(context, candidates)
        context.table("ms of fused by its tiles (sites, channels out, in), forward", _tiles(context, case))


def _advise(context: Context, steps: list[dict[str, Any]]) -> None:
    """Says in plain words which option to set, by the whole step's times."""
    ms = {row["candidate"]: row["ms"] for row in steps if "ms" in row}
    if not {"cells", "auto"} <= ms.keys():
        return
    if ms["auto"] < (1 - WORTH) * ms["cells"]:
        choice = "set --network_def#executor auto, which measures every way for each layer, fused among them"
    else:
        choice = "leave network_def#executor at cells"
    fused = f", {ms['cells fused']:.1f} by fused in all layers" if "cells fused" in ms else ""
    context.note(f"a step takes {ms['cells']:.1f} ms by cells, {ms['auto']:.1f} by auto{fused}: {choice}")


def _resenc(context: Context, candidates: list[str]) -> None:
    """The same for nnU-Net's ResEnc-L, all of whose convolutions but the pointwise ones are `fused`'s to take."""
    if importlib.util.find_spec("dynamic_network_architectures") is None or context.remaining() < RESENC:
        context.note("no time for ResEnc-L by the method fused, or no dynamic-network-architectures")
        return
    speed.use_encoder(**context.settings.resenc)
    cases = [Turns("encoder", context.settings.sizes[0], ratio, candidates) for ratio in context.settings.ratios[:2]]
    time_cases(context, cases, of="ResEnc-L: ")
    speed.use_encoder(**context.settings.encoder)


def _compile_fused(context: Context, case: speed.Case) -> None:
    """Compiles what the cases need, so that the first does not seem to take longer than the next ones will."""
    choose_kernels("default")
    try:
        speed.WHAT["encoder"]("cells fused", case)()
        context.synchronize()
    except RuntimeError as error:
        context.note(f"cells fused: {str(error).strip().splitlines()[0][:200]}")
    context.say("fused compiled")


def _tiles(context: Context, case: speed.Case) -> list[dict[str, Any]]:
    """One row for each level's layers without stride, while there is time: compiling takes seconds."""
    layout, window = CellLayout(case.drawn, case.device), Window((3, 3, 3), padding=(1, 1, 1))
    dtype = torch.bfloat16 if context.device.type == "cuda" else torch.float32
    usual = launch.choose_tiles
    rows: list[dict[str, Any]] = []
    for level in range(len(context.settings.encoder["blocks_down"])):
        channels, sites = context.settings.encoder["init_filters"] * 2**level, speed.CELL // 2**level
        blocks = random_blocks(context, dtype, len(layout), channels, sites, sites, sites)
        weight = random_blocks(context, dtype, channels, channels, 3, 3, 3)
        row: dict[str, Any] = {"level": level, "channels": channels, "block": sites}
        chosen = launch.choose_tiles(len(layout) * sites**3, channels, channels, dtype)
        for tiles in dict.fromkeys((chosen, *TILES)):
            if context.remaining() < 4:
                return rows
            if tiles.out > max(16, channels) or tiles.into > max(32, channels):
                continue
            launch.choose_tiles = lambda *_, tiles=tiles: tiles
            name = f"{tiles.sites}x{tiles.out}x{tiles.into}, {tiles.warps} warps, {tiles.stages} stages"
            try:
                row[name] = _time_forward(context, blocks.detach(), weight.detach(), layout, window)
            except RuntimeError as error:  # more shared memory than there is
                context.note(f"fused by tiles of {name}: {str(error).splitlines()[0][:200]}")
            finally:
                launch.choose_tiles = usual
        rows.append({**row, "chosen": f"{chosen.sites}x{chosen.out}x{chosen.into}"})
    return rows


def _time_forward(
    context: Context, blocks: torch.Tensor, weight: torch.Tensor, layout: CellLayout, window: Window
) -> float:
    """Median ms of a forward pass of the method fused."""
    block = (blocks.shape[2], blocks.shape[3], blocks.shape[4])

    def forward() -> None:
        METHODS["fused"].function(blocks, weight, None, layout, block, window, 1)

    for _ in range(2):
        forward()
    repeats = max(1, context.settings.repeats // 2)
    return 1000 * statistics.median(speed.seconds(forward, context.device) for _ in range(repeats))
