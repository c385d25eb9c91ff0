# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""The three planes that every picture shows, as radiologists look at them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.transforms import Affine2D

__all__ = ["PLANES", "Plane", "Row", "mark_sides", "side_by_side"]

#: between two pictures, as a share of their width
_GAP = 0.04
#: of a picture and the gap beside it, as a share of its height, so that its name has room
_NARROWEST = 0.6


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


class Row(NamedTuple):
    """Pictures side by side as one, because axes of their own would take most of the time of a drawing.

    Attributes:
        pixels: ``[rows, columns, 3]``.
        width: columns of a picture.
        step: columns from the start of a picture to the next one's.
    """

    pixels: np.ndarray
    width: int
    step: int

    def write_names(self, ax: Axes, names: Sequence[str]) -> None:
        """Writes a name above each picture; `ax` shows the pixels."""
        for number, name in enumerate(names):
            middle = number * self.step + (self.width - 1) / 2
            ax.annotate(name, (middle, 1), (0, 6), fontsize=9, ha="center", va="bottom",
                        xycoords=("data", "axes fraction"), textcoords="offset points")  # fmt: skip


def side_by_side(pictures: Sequence[np.ndarray], aspect: float) -> Row:
    """Pictures of one size ``[rows, columns, 3]``, from 0 to 1, in a row with white between them.

    Args:
        pictures: of one plane.
        aspect: height by width of a voxel.
    """
    rows, width, _ = pictures[0].shape
    gap = max(1, round(_GAP * width), round(_NARROWEST * rows * aspect) - width)
    white = np.ones((rows, gap, 3))
    parts = [part for picture in pictures for part in (white, picture)][1:]
    return Row(np.concatenate(parts, axis=1), width, width + white.shape[1])


def mark_sides(ax: Axes, plane: Plane, index: int, row: Row) -> None:
    """Writes the letters of the patient's sides at the edges of the first picture, its axis and number in a corner."""
    inside = Affine2D().scale(row.width / row.pixels.shape[1], 1) + ax.transAxes
    for where, letter in {(0.01, 0.5): plane.left, (0.99, 0.5): plane.right}.items():
        ax.text(*where, letter, color="yellow", fontsize=7, ha="left" if where[0] < 0.5 else "right",
                va="center", transform=inside)  # fmt: skip
    for where, letter in {(0.5, 0.99): plane.top, (0.5, 0.01): plane.bottom}.items():
        ax.text(*where, letter, color="yellow", fontsize=7, ha="center",
                va="top" if where[1] > 0.5 else "bottom", transform=inside)  # fmt: skip
    ax.text(0.99, 0.01, f"{'RAS'[plane.normal]} {index}", color="yellow", fontsize=6, ha="right", va="bottom",
            transform=inside)  # fmt: skip
