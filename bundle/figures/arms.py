# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""Several ways to train: Dice by the number of labelled people, and learning curves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

__all__ = ["draw_arms"]


def draw_arms(rows: Sequence[Mapping[str, Any]], arms: Sequence[str]) -> Figure:
    """Draws each run as a dot, and a panel of learning curves for each number of labelled people.

    Args:
        rows: of runs, each with `arm`, `labels`, the mean Dice as `mean`, and `curve`: pairs of step and Dice.
        arms: in the order of their colours.
    """
    counts = sorted({row["labels"] for row in rows})
    figure = Figure(figsize=(4.5 * (1 + len(counts)), 4.2), dpi=100, layout="constrained")
    FigureCanvasAgg(figure)
    dots, *curves = figure.subplots(1, 1 + len(counts), squeeze=False)[0]
    for number, arm in enumerate(arms):
        colour, shift = f"C{number}", 0.12 * (number - (len(arms) - 1) / 2)
        means = []
        for place, labels in enumerate(counts):
            here = [row for row in rows if row["arm"] == arm and row["labels"] == labels]
            values = [row["mean"] for row in here]
            dots.plot([place + shift] * len(values), values, "o", color=colour, alpha=0.5)
            means.append(float(np.mean(values)) if values else np.nan)
            for row in here:
                if row["curve"]:
                    curves[place].plot(*zip(*row["curve"], strict=True), color=colour, alpha=0.7)
        dots.plot([place + shift for place in range(len(counts))], means, "_-", color=colour, label=arm, markersize=16)
    dots.set(
        xticks=range(len(counts)),
        xlim=(-0.6, len(counts) - 0.4),
        xlabel="labelled people",
        ylabel="Dice of the held-out people",
    )
    dots.set_xticklabels([str(count) for count in counts])
    dots.legend()
    for ax, labels in zip(curves, counts):
        ax.set(title=f"{labels} labelled people", xlabel="steps", ylabel="Dice of some held-out people")
    for ax in figure.axes:
        ax.grid(alpha=0.3)
    return figure
