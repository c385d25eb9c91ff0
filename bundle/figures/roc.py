# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""The drawing of ROC curves."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib import colormaps
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import Tensor

__all__ = ["draw_roc", "roc_curve"]


def roc_curve(scores: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The corners of a ROC curve, from (0, 0) to (1, 1), one for each different score.

    Args:
        scores: [volumes].
        labels: [volumes], 1 or 0, both of them.

    Returns:
        False and true positive rates.
    """
    order = np.argsort(-scores, kind="stable")
    ends = np.append(np.flatnonzero(np.diff(scores[order])), len(scores) - 1)  # volumes of one score are one step
    true, false = (np.append(0, np.cumsum(labels[order] == value)[ends]) for value in (1, 0))
    return false / false[-1], true / true[-1]


def draw_roc(
    scores: Tensor, labels: Tensor, areas: Sequence[float], *, findings: Sequence[str], title: str
) -> np.ndarray:
    """Draws the ROC curve of each finding; one with a single class is named without a curve.

    Args:
        scores: [volumes, findings].
        labels: [volumes, findings], 1, 0 or NaN where not known.
        areas: under the curve of each finding, NaN for one with a single class.
        findings: their names.
        title: of the whole.

    Returns:
        The pixels, uint8 [height, width, 3].
    """
    figure = Figure(figsize=(8, max(5, 1 + 0.23 * len(findings))), dpi=80, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    ax = figure.subplots()
    ax.plot([0, 1], [0, 1], color="0.7", linestyle=":")
    colours = colormaps["tab20" if len(findings) > 10 else "tab10"]
    for number, (finding, area) in enumerate(zip(findings, areas)):
        score, label = scores[:, number].numpy(), labels[:, number].numpy()
        known = ~np.isnan(label)
        style = ("-", "--", ":", "-.")[number // colours.N % 4]
        if np.isnan(area):
            ax.plot([], [], style, color=colours(number % colours.N), label=f"{finding}: one class only")
        else:
            counts = f"{int(label[known].sum())} of {known.sum()}"
            text = f"{finding}: {area:.3f} ({counts})"
            ax.plot(*roc_curve(score[known], label[known]), style, color=colours(number % colours.N), label=text)
    ax.set(xlabel="false positive rate", ylabel="true positive rate", aspect="equal", title=title)
    figure.legend(loc="outside right upper", title="AUC (positive volumes)", fontsize=9)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3]
