# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""The three planes that every picture shows, as radiologists look at them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes

__all__ = ["PLANES", "Plane", "mark_sides"]


@dataclass(frozen=True)
class Plane:
    """A plane, as radiologists look at it: the patient's right, or front, is on the left of the picture."""

    name: str
    normal: int  # the array axis it is perpendicular to
    left: str
    right: str
    top: str
    bottom: str

    @property
    def across(self) -> int:
        """The array axis that runs from the right of the picture to its left."""
        return 1 if self.normal == 0 else 0

    @property
    def up(self) -> int:
        """The array axis that runs from the bottom of the picture to its top."""
        return 1 if self.normal == 2 else 2

    def cut(self, volume: np.ndarray, index: int) -> np.ndarray:
        """The plane's slice of an R, A, S array as rows from top to bottom."""
        taken: np.ndarray = np.take(volume, index, axis=self.normal)
        return taken.T[::-1, ::-1]  # from [across, up] to rows from the top and columns from the left


PLANES = (
    Plane("axial", normal=2, left="R", right="L", top="A", bottom="P"),
    Plane("coronal", normal=1, left="R", right="L", top="S", bottom="I"),
    Plane("sagittal", normal=0, left="A", right="P", top="S", bottom="I"),
)


def mark_sides(ax: Axes, plane: Plane, index: int) -> None:
    """Writes the letters of the patient's sides at the edges of a slice, and its axis and number into a corner."""
    for where, letter in {(0.01, 0.5): plane.left, (0.99, 0.5): plane.right}.items():
        ax.text(*where, letter, color="yellow", fontsize=7, ha="left" if where[0] < 0.5 else "right",
                va="center", transform=ax.transAxes)  # fmt: skip
    for where, letter in {(0.5, 0.99): plane.top, (0.5, 0.01): plane.bottom}.items():
        ax.text(*where, letter, color="yellow", fontsize=7, ha="center",
                va="top" if where[1] > 0.5 else "bottom", transform=ax.transAxes)  # fmt: skip
    ax.text(0.99, 0.01, f"{'RAS'[plane.normal]} {index}", color="yellow", fontsize=6, ha="right", va="bottom",
            transform=ax.transAxes)  # fmt: skip
