# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""The drawing of reliability curves."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from matplotlib import colormaps
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

__all__ = ["draw_reliability"]


def draw_reliability(
    curves: Mapping[str, tuple[np.ndarray, np.ndarray, np.ndarray]], errors: Mapping[str, float], *, title: str
) -> np.ndarray:
    """Draws how often each finding is there against the probability that was said. The diagonal is perfect.

    Args:
        curves: by finding, mean probability, frequency and number of cases of each bin; larger dots are more cases.
        errors: the calibration error of each finding.
        title: of the whole.

    Returns:
        The pixels, uint8 [height, width, 3].
    """
    figure = Figure(figsize=(8, max(5, 1 + 0.23 * len(curves))), dpi=80, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    ax = figure.subplots()
    ax.plot([0, 1], [0, 1], color="0.7", linestyle=":")
    colours = colormaps["tab20" if len(curves) > 10 else "tab10"]
    for number, (finding, (mean, frequency, count)) in enumerate(curves.items()):
        style = ("-", "--", ":", "-.")[number // colours.N % 4]
        colour = colours(number % colours.N)
        ax.plot(mean, frequency, style, color=colour, label=f"{finding}: {errors[finding]:.3f}")
        ax.scatter(mean, frequency, s=10 + 90 * count / max(count.sum(), 1), color=colour)
    ax.set(xlabel="mean probability", ylabel="frequency", xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), aspect="equal")
    ax.set_title(title, parse_math=False)
    figure.legend(loc="outside right upper", title="calibration error", fontsize=9)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3]
