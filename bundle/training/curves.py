# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""The learning curves as a picture."""

from __future__ import annotations

from collections.abc import Mapping

from ignite.engine import Engine, Events
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from bundle.atomic import replace_file
from bundle.runs import RunFolder
from bundle.training.history import read_history

__all__ = ["LearningCurves"]

#: per picture, its y axis's label: the figures of the history in it and what to call them
_CURVES = {
    "reconstruction loss of hidden voxels": {
        "train/reconstruction": "training",
        "validation/reconstruction": "validation",
        "validation/zero_predictor": "validation: predict 0",
        "validation/mean_predictor": "validation: predict the mean of the visible voxels",
    }
}
_STYLES = ("C0-", "C1-", "C7:", "C7--")


class LearningCurves:
    """Draws `curves.png` after each epoch: the reconstruction loss, beside what predicts without having learnt.

    Args:
        run_folder: where to, and where `History` keeps the figures; put this handler after that one.
        curves: what to draw instead: for each picture, by the label of its y axis, figures and what to call them.
    """

    def __init__(self, run_folder: RunFolder, curves: Mapping[str, Mapping[str, str]] | None = None) -> None:
        self.run_folder, self.curves = run_folder, curves or _CURVES

    def attach(self, engine: Engine) -> None:
        """Registers with the trainer."""
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._draw)

    def _draw(self, engine: Engine) -> None:  # noqa: ARG002 - the signature of a handler
        rows = read_history(self.run_folder.history)
        figure = Figure(figsize=(7 * len(self.curves), 4.5), dpi=100, layout="constrained")
        FigureCanvasAgg(figure)
        for ax, (ylabel, names) in zip(figure.subplots(1, len(self.curves), squeeze=False)[0], self.curves.items()):
            for place, (name, label) in enumerate(names.items()):
                style = _STYLES[place] if self.curves is _CURVES else f"C{place}-"
                points = [(row["epoch"], row[name]) for row in rows if name in row]
                if points:
                    ax.plot(*zip(*points, strict=True), style, label=label, marker="." if len(points) == 1 else None)
            ax.set(xlabel="epoch", ylabel=ylabel)
            ax.set_ylim(bottom=0)
            ax.xaxis.set_major_locator(MaxNLocator(integer=True))
            ax.grid(alpha=0.3)
            if ax.has_data():
                ax.legend()
        with replace_file(self.run_folder.curves) as temporary:
            figure.savefig(temporary, format="png")
