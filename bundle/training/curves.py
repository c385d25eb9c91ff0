# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""The learning curves as a picture."""

from __future__ import annotations

from ignite.engine import Engine, Events
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from bundle.training.atomic import replace_file
from bundle.training.history import read_history
from bundle.training.rundir import RunFolder

__all__ = ["LearningCurves"]

# figure of the history: (label, line style)
_CURVES = {
    "train/reconstruction": ("training", "C0-"),
    "validation/reconstruction": ("validation", "C1-"),
    "validation/zero_predictor": ("validation: predict 0", "C7:"),
    "validation/mean_predictor": ("validation: predict the mean of the visible voxels", "C7--"),
}


class LearningCurves:
    """Draws `curves.png` after each epoch: the reconstruction loss, beside what predicts without having learnt.

    Args:
        run_folder: where to, and where `History` keeps the figures; put this handler after that one.
    """

    def __init__(self, run_folder: RunFolder) -> None:
        self.run_folder = run_folder

    def attach(self, engine: Engine) -> None:
        """Registers with the trainer."""
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._draw)

    def _draw(self, engine: Engine) -> None:  # noqa: ARG002 - the signature of a handler
        rows = read_history(self.run_folder.history)
        figure = Figure(figsize=(7, 4.5), dpi=100, layout="constrained")
        FigureCanvasAgg(figure)
        ax = figure.subplots()
        for name, (label, style) in _CURVES.items():
            points = [(row["epoch"], row[name]) for row in rows if name in row]
            if points:
                ax.plot(*zip(*points, strict=True), style, label=label, marker="." if len(points) == 1 else None)
        ax.set(xlabel="epoch", ylabel="reconstruction loss of hidden voxels")
        ax.set_ylim(bottom=0)
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
        ax.grid(alpha=0.3)
        ax.legend()
        with replace_file(self.run_folder.curves) as temporary:
            figure.savefig(temporary, format="png")
