# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""The colours of classes, the same ones in every picture and in what other programs show."""

from __future__ import annotations

import colorsys

import numpy as np
from matplotlib import colormaps

__all__ = ["class_colours"]

#: hues this share of the circle apart never come back, and neighbours differ much
_GOLDEN = 0.618034


def class_colours(count: int) -> np.ndarray:
    """Red, green and blue from 0 to 1 for each of `count` classes, ``[count, 3]``.

    Up to 10 and 20 classes have matplotlib's "tab10" and "tab20"; more classes have hues that never repeat.

    Example:
        >>> from bundle.figures.colours import class_colours
        >>> class_colours(2).round(2).tolist()
        [[0.12, 0.47, 0.71], [1.0, 0.5, 0.05]]
    """
    if count <= 20:
        colours = colormaps["tab20" if count > 10 else "tab10"](np.arange(count))[:, :3]
    else:
        colours = [
            colorsys.hsv_to_rgb(number * _GOLDEN % 1, 0.65 + 0.3 * (number % 2), 0.95) for number in range(count)
        ]
    return np.asarray(colours, dtype=np.float64).reshape(count, 3)
