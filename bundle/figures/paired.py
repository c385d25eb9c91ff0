# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""Two results on the same cases, side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from bundle.figures.names import name_end

__all__ = ["draw_paired"]

_BETTER, _WORSE, _NEITHER = "C2", "C3", "C7"


def draw_paired(
    values: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    names: tuple[str, str],
    *,
    metric: str,
    higher_is_better: bool | None = True,
) -> Figure:
    """Draws a line for each case from its first value to its second, a panel for each class; means are in black.

    Args:
        values: of each class the two values of each case; pairs that are not finite are left out.
        names: of the two results.
        metric: what the values are.
        higher_is_better: colours a line green where the second value is better, red where it is worse; None: grey.
    """
    count = max(1, len(values))
    figure = Figure(figsize=(1.2 + 2.6 * count, 4.2), dpi=100, layout="constrained")
    FigureCanvasAgg(figure)
    for ax, (title, (first, second)) in zip(figure.subplots(1, count, sharey=True, squeeze=False)[0], values.items()):
        pairs = np.array([first, second], dtype=np.float64).T
        pairs = pairs[np.isfinite(pairs).all(1)]
        for one, other in pairs:
            rise = np.sign(other - one) * {True: 1, False: -1, None: 0}[higher_is_better]
            colour = {1: _BETTER, -1: _WORSE}.get(int(rise), _NEITHER)
            ax.plot([0, 1], [one, other], color=colour, marker=".", alpha=max(0.15, min(0.8, 12 / max(1, len(pairs)))))
        if len(pairs):
            ax.plot([0, 1], pairs.mean(0), color="black", linewidth=2.5, marker="o")
        ax.set(xticks=[0, 1], xlim=(-0.25, 1.25), title=f"{title} (n = {len(pairs)})")
        ax.set_xticklabels([name_end(name, 16) for name in names])
        ax.grid(alpha=0.3, axis="y")
    figure.axes[0].set_ylabel(metric)
    return figure
