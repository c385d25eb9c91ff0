# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""The drawing of reconstructions: four pictures in each of three planes, of several crops or of one volume."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.collections import LineCollection
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from bundle.figures.names import name_end
from bundle.figures.planes import PLANES, Plane, Row, mark_sides, side_by_side

__all__ = ["PanelCrop", "draw_panels", "draw_volume", "plane_indices"]

_PICTURES = ("original", "masked input", "reconstruction", "error")
_LARGEST_ERROR = 50.0  # % of the grey window: the end of the colour bar
# inches; all is placed by hand, as an automatic layout takes long
_WIDTH = 8.0  # of the four pictures of a volume
_PANEL_WIDTH = 7.0  # of those of a crop
_TALLEST = 3.2  # of one picture: a spine's would be much taller than wide
_NAMES = 0.3  # above each row
_HEADING = 0.35  # above the rows of a crop, its name
_TITLE = 0.3
_MARGIN = 0.1  # below
_SIDE = 0.3  # left of a row
_BAR = 0.8  # right of all, for the colour bar
_GREYS = colormaps["gray"].with_extremes(bad="#30507a")  # of what is masked
_ERRORS = colormaps["inferno"].with_extremes(bad="black")


@dataclass(frozen=True)
class PanelCrop:
    """One crop to draw. Arrays have the axes R, A, S (towards the patient's right, front and head).

    Args:
        name: of the volume.
        spacing: of the voxels along R, A, S, in mm.
        image: [D, H, W], intensities.
        reconstruction: [D, H, W], in the same units.
        foreground: [D, H, W], True in the body.
        valid: [D, H, W], False where the volume was padded.
        visible: [d, h, w], True where the network saw the cell.
        hidden: [d, h, w], True where the cell was masked and counts in the loss.
    """

    name: str
    spacing: tuple[float, ...]
    image: np.ndarray
    reconstruction: np.ndarray
    foreground: np.ndarray
    valid: np.ndarray
    visible: np.ndarray
    hidden: np.ndarray

    def on_voxels(self, cells: np.ndarray) -> np.ndarray:
        """Repeats each cell over its voxels."""
        for axis, size in enumerate(self.cell_size):
            cells = cells.repeat(size, axis=axis)
        return cells

    @property
    def cell_size(self) -> tuple[int, ...]:
        """Voxels per cell along each axis."""
        return tuple(image // cell for image, cell in zip(self.image.shape, self.visible.shape, strict=True))


def plane_indices(crop: PanelCrop) -> tuple[int, ...]:
    """The slice along each array axis that has the most hidden foreground voxels; of equal ones the middle one."""
    hidden = crop.on_voxels(crop.hidden) & crop.foreground
    indices = []
    for axis in range(3):
        counts = hidden.sum(axis=tuple(other for other in range(3) if other != axis))
        best = np.flatnonzero(counts == counts.max())
        indices.append(int(best[len(best) // 2]))
    return tuple(indices)


def draw_panels(crops: Sequence[PanelCrop], *, title: str) -> np.ndarray:
    """Draws the panels, two crops beside each other.

    Grey values share one window per crop: the 1st to 99th percentile of the original without padding. In
    "reconstruction" the hidden cells are the network's and the visible ones the original's. "error" is the absolute
    difference in hidden cells as a percentage of the grey window. Lines mark the borders of the cells in "masked
    input".

    Args:
        crops: each has a row for each plane.
        title: of the whole.

    Returns:
        The pixels, uint8 [height, width, 3]. It takes no display and leaves pyplot's global state alone.
    """
    beside = min(len(crops), 2)
    heights = np.max([_row_heights(crop, _PANEL_WIDTH) for crop in crops], axis=0)
    block = _SIDE + _PANEL_WIDTH, float(heights.sum()) + _NAMES * len(PLANES) + _HEADING
    below = block[1] * -(-len(crops) // beside)
    figure = Figure(figsize=(block[0] * beside + _BAR, below + _TITLE + _MARGIN), dpi=80)
    figure.suptitle(
        f"{title}: in hidden cells the reconstruction, elsewhere the original; error in % of the crop's grey window",
        fontsize=10, y=1 - 0.08 / figure.get_figheight(), parse_math=False,
    )  # fmt: skip
    for number, crop in enumerate(crops):
        line, column = divmod(number, beside)
        left, top = column * block[0] + _SIDE, below + _MARGIN - line * block[1]
        middle = (left + _PANEL_WIDTH / 2) / figure.get_figwidth()
        figure.text(middle, (top - 0.2) / figure.get_figheight(), name_end(crop.name, 60), fontsize=10, ha="center",
                    va="top", parse_math=False)  # fmt: skip
        _draw_rows(figure, crop, (left, top - _HEADING), _PANEL_WIDTH, heights)
    return _finish(figure, below - _HEADING - _NAMES)


def draw_volume(crop: PanelCrop, *, title: str) -> np.ndarray:
    """Draws one volume as `draw_panels` does, but larger.

    Args:
        crop: the volume, as one crop.
        title: of the whole.

    Returns:
        As `draw_panels`.
    """
    heights = _row_heights(crop, _WIDTH)
    rows, title_height = sum(heights) + _NAMES * len(PLANES), 0.4
    figure = Figure(figsize=(_SIDE + _WIDTH + _BAR, rows + title_height + _MARGIN), dpi=100)
    figure.suptitle(
        f"{name_end(crop.name, 60)}, {title}\nin hidden cells the reconstruction, elsewhere the original; error in % of"
        " the grey window",
        fontsize=9, y=1 - 0.08 / figure.get_figheight(), parse_math=False,
    )  # fmt: skip
    _draw_rows(figure, crop, (_SIDE, rows + _MARGIN), _WIDTH, heights)
    return _finish(figure, rows - _NAMES)


def _row_heights(crop: PanelCrop, width: float) -> list[float]:
    """Inches of each plane's row, whose pictures have this width together."""
    heights = []
    for plane in PLANES:
        wide, high = (crop.spacing[axis] * crop.image.shape[axis] for axis in (plane.across, plane.up))
        heights.append(min(high / wide * width / len(_PICTURES), _TALLEST))
    return heights


def _draw_rows(
    figure: Figure, crop: PanelCrop, corner: tuple[float, float], width: float, heights: Sequence[float]
) -> None:
    """Draws a row for each plane, names above each. Lengths are inches; the corner is the upper left one."""
    pictures, indices = _pictures(crop), plane_indices(crop)
    wide, high = figure.get_size_inches()
    left, top = corner
    for plane, height in zip(PLANES, heights, strict=True):
        top -= _NAMES + height
        ax = figure.add_axes((left / wide, top / high, width / wide, height / high))
        _draw_plane(ax, crop, plane, pictures, indices[plane.normal]).write_names(ax, _PICTURES)
        ax.set_ylabel(plane.name, fontsize=9)


def _finish(figure: Figure, height: float) -> np.ndarray:
    """The pixels of a figure, with a colour bar of so many inches beside it."""
    wide, high = figure.get_size_inches()
    _add_bar(figure, (1 - (_BAR - 0.1) / wide, _MARGIN / high, 0.1 / wide, height / high))
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3]


def _add_bar(figure: Figure, place: tuple[float, float, float, float]) -> None:
    """The colour bar of the errors."""
    bar = figure.colorbar(ScalarMappable(Normalize(0, _LARGEST_ERROR), _ERRORS), cax=figure.add_axes(place))
    bar.set_label("error, % of grey window", fontsize=8)
    bar.ax.tick_params(labelsize=8)


def _pictures(crop: PanelCrop) -> tuple[np.ndarray, ...]:
    """The four volumes of a row, in grey (0 to 1) but for the last, in %; NaN where there is nothing to show."""
    # of a thin volume most is padding: its one value would be both percentiles
    low, high = np.percentile(crop.image[crop.valid] if crop.valid.any() else crop.image, (1, 99))
    window = max(float(high - low), 1e-6)
    original = (crop.image - low) / window
    masked = np.where(crop.on_voxels(crop.visible), original, np.nan)
    hidden = crop.on_voxels(crop.hidden)
    pasted = np.where(hidden, (crop.reconstruction - low) / window, original)
    error = np.where(hidden, 100 * np.abs(pasted - original), np.nan)
    return original, masked, pasted, error


def _draw_plane(ax: Axes, crop: PanelCrop, plane: Plane, pictures: Sequence[np.ndarray], index: int) -> Row:
    """Draws one plane's four pictures."""
    *greys, error = (plane.cut(volume, index) for volume in pictures)
    coloured = [_GREYS(np.ma.masked_invalid(grey.clip(0, 1))) for grey in greys]
    coloured.append(_ERRORS(np.ma.masked_invalid(error / _LARGEST_ERROR)))
    aspect = crop.spacing[plane.up] / crop.spacing[plane.across]
    drawn = side_by_side([one[..., :3] for one in coloured], aspect)
    ax.imshow(drawn.pixels, aspect=aspect, interpolation="nearest")
    ax.set(xticks=[], yticks=[])
    ax.spines[:].set_visible(False)
    _draw_cells(ax, crop, plane, drawn.step * _PICTURES.index("masked input"))
    mark_sides(ax, plane, index, drawn)
    return drawn


def _draw_cells(ax: Axes, crop: PanelCrop, plane: Plane, left: int) -> None:
    """Thin lines at the borders of the cells; the grid starts at the picture's right and bottom, where axes start.

    None where cells are single voxels, as those of a whole volume are whose windows' cells form no common grid.
    """
    if set(crop.cell_size) == {1}:
        return
    width, height = crop.image.shape[plane.across], crop.image.shape[plane.up]
    across = left + width - 0.5 - np.arange(0, width + 1, crop.cell_size[plane.across])
    up = height - 0.5 - np.arange(0, height + 1, crop.cell_size[plane.up])
    right = left + width - 0.5
    lines = [*([(x, -0.5), (x, height - 0.5)] for x in across), *([(left - 0.5, y), (right, y)] for y in up)]
    # not the grid of the ticks, which would have to be measured
    ax.add_collection(LineCollection(lines, colors="white", linewidths=0.3, alpha=0.6), autolim=False)
