# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""Part i: the decoder in CUDA graphs and compiled: the coarse `Decoder`, and `SegResDecoder` at full resolution.

Unlike the sparse encoder's, its sizes never change. Compiling needs a C++ compiler and takes a while.
"""

from __future__ import annotations

from typing import Any

import speed
from gpu_parts.context import Context
from gpu_parts.timing import choose_kernels, take_turns

__all__ = ["run"]

#: of the step: each decoder as it is, and what may be faster
CASES = {
    "cells graphed": "cells",
    "cells segres graphed": "cells segres",
    "cells segres compiled": "cells segres",
    "cells compiled": "cells",
}
#: seconds that a graph takes at least, and compiling
NEEDED = {"graphed": 4, "compiled": 20}
#: of a step's time, what must be saved to be worth an option
WORTH = 0.03


def run(context: Context) -> None:
    """Times each variant beside the decoder as it is, while there is time, and says what to set."""
    speed.use_encoder(**context.settings.encoder)
    size, ratio = context.settings.sizes[0], context.settings.ratios[0]
    case = speed.Case(size, ratio, context.settings.batch, context.device)
    choose_kernels("default")
    rows: list[dict[str, Any]] = []
    for variant, plain in CASES.items():
        kind = variant.split()[-1]
        if context.remaining() < NEEDED[kind] or (context.dry and kind == "compiled"):
            context.note(f"no time for {variant}")
            continue
        pair = take_turns(context, "step", (plain, variant), case)
        rows += [{**row, "turns": variant} for row in pair]
        context.table("decoder as it is, in CUDA graphs, compiled", rows)
        ms = {row["candidate"]: row["ms"] for row in pair if "ms" in row}
        if len(ms) == len(pair):
            context.note(_advice(kind, ms[plain], ms[variant], "SegResDecoder" if "segres" in variant else "Decoder"))


def _advice(kind: str, plain: float, other: float, decoder: str) -> str:
    saved = 1 - other / plain
    about = f"{decoder} {kind}: a step takes {other:.1f} instead of {plain:.1f} ms, {saved:.0%} less"
    if kind == "graphed":
        return f"{about}: {'worth' if saved >= WORTH else 'not worth'} an option"
    value = str(saved >= WORTH).lower()
    return f"{about}: set network_def#compile_decoder to {value} with this decoder"
