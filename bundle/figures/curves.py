# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""Learning curves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

__all__ = ["draw_curves"]

#: of what predicts without having learned, in grey: dotted, dashed
_BASELINES = ("C7:", "C7--")
#: points of a curve, from which on they are not marked
_FEW = 10
#: powers of ten between which the y axis has plain figures, so short that they fit the left margin
_PLAIN = (-2, 4)
#: inches of each picture, and of its margins: fixed, as to look for the best ones takes as long as all the rest
_WIDTH, _HEIGHT = 7.0, 4.5
_LEFT, _RIGHT, _BOTTOM, _TOP = 0.8, 0.2, 0.55, 0.3


def draw_curves(rows: Sequence[Mapping[str, float]], curves: Mapping[str, Mapping[str, str]]) -> Figure:
    """Draws metrics over the epochs.

    Args:
        rows: metrics of each epoch by name; an epoch that lacks a metric has no point on its curve.
        curves: for each picture, by the label of its y axis: the names of metrics, and what to call them. A metric
            whose name ends in "_predictor" or "_guess" is a baseline, and grey.
    """
    width = _WIDTH * len(curves)
    figure = Figure(figsize=(width, _HEIGHT), dpi=100)
    FigureCanvasAgg(figure)
    figure.subplots_adjust(
        left=_LEFT / width,
        right=1 - _RIGHT / width,
        bottom=_BOTTOM / _HEIGHT,
        top=1 - _TOP / _HEIGHT,
        wspace=(_LEFT + _RIGHT) / (_WIDTH - _LEFT - _RIGHT),
    )
    for ax, (ylabel, names) in zip(figure.subplots(1, len(curves), squeeze=False)[0], curves.items()):
        for (name, label), style in zip(names.items(), _choose_styles(names), strict=True):
            points = [(row["epoch"], row[name]) for row in rows if name in row]
            if points:
                ax.plot(*zip(*points, strict=True), style, label=label, marker="." if len(points) < _FEW else None)
        ax.set(xlabel="epoch", ylabel=ylabel)
        ax.update_datalim([(row["epoch"], 0) for row in rows])  # so that 0 and all epochs are there, with a margin
        ax.autoscale_view()
        ax.set_ylim(bottom=0)
        ax.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        ax.ticklabel_format(axis="y", scilimits=_PLAIN)
        ax.grid(alpha=0.3)
        if ax.has_data():
            ax.legend()
    return figure


def _choose_styles(names: Mapping[str, str]) -> list[str]:
    colours, baselines = iter(f"C{number}-" for number in range(len(names))), iter(_BASELINES * len(names))
    return [next(baselines if name.endswith(("_predictor", "_guess")) else colours) for name in names]
