# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""The drawing of FROC curves."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from matplotlib import colormaps
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

__all__ = ["draw_froc"]

_MOST = 10.0  # false positives per scan that are shown


def draw_froc(
    curves: Mapping[str, tuple[np.ndarray, np.ndarray]], scores: Mapping[str, float], *, title: str
) -> np.ndarray:
    """Draws the share of the boxes that are found against the false positives in each scan.

    Args:
        curves: by class, false positives per scan and sensitivity.
        scores: the FROC score of each class.
        title: of the whole.

    Returns:
        The pixels, uint8 [height, width, 3].
    """
    figure = Figure(figsize=(8, 5), dpi=80, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    ax = figure.subplots()
    colours = colormaps["tab20" if len(curves) > 10 else "tab10"]
    for number, (name, (rates, sensitivity)) in enumerate(curves.items()):
        order = np.lexsort((sensitivity, rates))
        text = f"{name}: {scores[name]:.3f}"
        # from nothing, and on to the edge: with more false positives the sensitivity stays at least as high
        reached = np.concatenate([[0.0], sensitivity[order], [np.max(sensitivity, initial=0.0)]])
        ax.step(
            np.concatenate([[0.0], rates[order], [_MOST]]),
            reached,
            where="post",
            color=colours(number % colours.N),
            label=text,
        )
    ax.set(xlabel="false positives per scan", ylabel="sensitivity", ylim=(0, 1.02), xscale="symlog", xlim=(0, _MOST))
    ax.set_xticks([0, 1, 2, 4, 8], ["0", "1", "2", "4", "8"])
    ax.set_title(title, parse_math=False)
    ax.grid(alpha=0.3)
    figure.legend(loc="outside right upper", title="FROC score", fontsize=9)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3]
