# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""How often values occur, for several quantities side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

__all__ = ["draw_histograms"]

_BINS = 40


def draw_histograms(quantities: Mapping[str, Mapping[str, Sequence[float]]], *, ylabel: str = "volumes") -> Figure:
    """Draws a histogram of each quantity, with a bar for each group in each bin, one on the other.

    A bin at the right holds all values above the 99th percentile, so that one odd value does not hide the others.

    Args:
        quantities: values of each group by its name, by the label of the x axis.
        ylabel: of what there are so many.
    """
    figure = Figure(figsize=(4.2 * len(quantities), 3.2), dpi=100, layout="constrained")
    FigureCanvasAgg(figure)
    for ax, (xlabel, groups) in zip(figure.subplots(1, len(quantities), squeeze=False)[0], quantities.items()):
        every = np.concatenate([np.asarray(values, dtype=float) for values in groups.values()] or [np.empty(0)])
        if every.size:
            low, high = float(every.min()), float(np.percentile(every, 99))
            edges = np.linspace(low, high if high > low else low + 1, _BINS)
            clipped = [np.clip(np.asarray(values, dtype=float), low, edges[-1]) for values in groups.values()]
            ax.hist(clipped, bins=edges.tolist(), stacked=True, label=list(groups))
            if every.max() > edges[-1]:
                ax.set_title(f"the last bar: up to {every.max():.4g}", fontsize=9)
            if len(groups) > 1:
                ax.legend()
        ax.set(xlabel=xlabel, ylabel=ylabel)
    return figure
