# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""From the places of the slices to one grid: which slices are the volume, their order, their spacing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from bundle.data.dicom.acquisitions import count_lost
from bundle.data.dicom.frames import Frame
from bundle.errors import VolumeError

__all__ = ["Grid", "choose_slices", "in_order", "lay_out"]

#: directions that differ by less differ by rounding
_SAME_DIRECTION = 5e-4
#: sizes of a pixel that differ by less, as a share, differ by rounding
_SAME_PIXEL = 1e-4
#: at most this share of a series may be slices that do not belong to the volume, unless their headers say so
_ODD_SHARE = 0.1
#: slices are missing where a step between two neighbours is this many times the usual one
_LARGEST_STEP = 1.5
#: steps that differ by less, as a share, are one spacing
_SAME_STEP = 0.02
#: a spacing that changes does so after at least this many steps, and not by more than this factor
_SHORTEST_RUN, _LARGEST_CHANGE = 3, 5.0
#: how far a slice may lie from its place on the grid: in mm, or as a share of a step or a pixel; some scanners round
#: positions to 0.1 mm
_MISPLACED_MM, _MISPLACED = 0.055, 0.1
#: on a line, in mm: the line is then the one through its ends, without the rounding of a fit
_EXACT = 1e-9


@dataclass(frozen=True)
class Grid:
    """A regular grid, and the place of the slices on it.

    Attributes:
        affine: from index (column, row, slice) to RAS mm.
        count: number of slices.
        at: the slice, as a fraction of the given ones, at each place of the grid; None if they are the given ones.
        note: what was done about uneven steps, or "".
    """

    affine: np.ndarray
    count: int
    at: np.ndarray | None = None
    note: str = ""


def choose_slices(frames: Sequence[Frame], name: str) -> tuple[list[Frame], list[str]]:
    """The largest set of slices of one size, pixel and orientation, and notes on the others.

    The slices get the mean orientation of all.

    Raises:
        VolumeError: if no set of slices is clearly the volume.
    """
    usable = [frame for frame in frames if not frame.odd and frame.place is not None and frame.pixel is not None]
    if screens_alone := not usable:
        _refuse_unusable(frames, name)
        usable = [frame for frame in frames if frame.place is not None and frame.pixel is not None]
    groups: list[list[Frame]] = []
    for frame in usable:
        alike = next((group for group in groups if _alike(group[0], frame)), None)
        if alike is None:
            groups.append([frame])
        else:
            alike.append(frame)
    main = max(groups, key=len)
    others = [frame for group in groups if group is not main for frame in group]
    if len(others) > _ODD_SHARE * len(main):
        raise VolumeError(name, f"mixes slices of different {_difference(main[0], others)}", "split the series")
    places = np.stack([frame.place for frame in main if frame.place is not None])
    turned = [
        replace(frame, place=np.stack([place[0], *_directions(places, name)])) for frame, place in zip(main, places)
    ]
    kept = {id(frame) for frame in usable}
    kinds = Counter(frame.odd or "without a position" for frame in frames if id(frame) not in kept)
    kinds.update(f"of another {_difference(main[0], [frame])}" for frame in others)
    notes = [f"{count} image(s) left out: {kind}" for kind, count in kinds.items()]
    if screens_alone:
        notes.append("its images are screen saves by their headers: look whether they are a scan")
    return turned, notes


def in_order(frames: Sequence[Frame]) -> tuple[list[Frame], np.ndarray]:
    """The slices by their positions along their normal, and these positions in mm."""
    along = np.array([_along(frame) for frame in frames])
    order = np.argsort(along, kind="stable")
    return [frames[i] for i in order], along[order]


def lay_out(frames: Sequence[Frame], along: np.ndarray, name: str) -> Grid:
    """The grid of slices in order, none of them twice.

    Steps that are uneven give a grid of even ones, between which the slices are interpolated. A volume whose slices
    are tilted against its long axis keeps its sheared axes.

    Raises:
        VolumeError: if slices are missing or displaced sideways.
    """
    positions = np.stack([_placed(frame)[0] for frame in frames])
    steps = np.diff(along)
    usual = float(np.median(steps))
    _check_gaps(frames, steps, name)
    start, way = _line(along, positions)  # per mm along the normal
    sideways = float(np.linalg.norm(positions - start - np.outer(along, way), axis=1).max())
    if sideways > max(_MISPLACED_MM, _MISPLACED * min(frames[0].pixel or (1.0,))):
        raise VolumeError(
            name,
            f"has slices that are displaced sideways, by up to {_displaced(along, positions):.1f} mm",
            "split the series or leave it out",
        )
    numbers = np.arange(len(along))
    first, even = _line(numbers, along)
    if np.abs(along - first - numbers * even).max() <= max(_SAME_STEP * usual, min(_MISPLACED_MM, _MISPLACED * usual)):
        return Grid(_affine(frames[0], start + way * first, way * even), len(along))
    runs = _runs(steps)
    step = float(min(steps)) if len(runs) > 1 and min(runs) >= _SHORTEST_RUN else float(steps.mean())
    count = int(np.ceil((along[-1] - along[0]) / step - 0.01)) + 1
    step = float(along[-1] - along[0]) / (count - 1)  # a little finer, so that the last slice keeps its place
    wanted = along[0] + step * np.arange(count)
    note = f"slices {steps.min():.3g} to {steps.max():.3g} mm apart, resampled to {step:.3g} mm"
    affine = _affine(frames[0], start + way * along[0], way * step)
    return Grid(affine, count, np.interp(wanted, along, numbers), note)


def _line(at: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The straight line nearest to values at some places: its value at 0 and its slope.

    Positions that a scanner has rounded differ from it by half a digit at most, also where first and last are rounded.
    """
    ends = (values[-1] - values[0]) / (at[-1] - at[0])
    if np.abs(values - values[0] - np.multiply.outer(at - at[0], ends)).max() < _EXACT:
        return values[0] - ends * at[0], ends
    middle = at - at.mean()
    slope = np.tensordot(middle, values, axes=1) / (middle @ middle)
    return values.mean(0) - slope * at.mean(), slope


def _displaced(along: np.ndarray, positions: np.ndarray) -> float:
    """How far slices lie from the line between the first and the last, in mm."""
    way = (positions[-1] - positions[0]) / (along[-1] - along[0])
    return float(np.linalg.norm(positions - positions[0] - np.outer(along - along[0], way), axis=1).max())


def _check_gaps(frames: Sequence[Frame], steps: np.ndarray, name: str) -> None:
    usual = float(np.median(steps))
    gaps = int((steps > _LARGEST_STEP * usual).sum())
    runs = _runs(steps)
    changes = len(runs) > 1 and min(runs) >= _SHORTEST_RUN
    stacks = len({frame.stack for frame in frames})
    if stacks > 1 and steps.max() > _LARGEST_STEP * steps.min():
        raise VolumeError(name, f"holds {stacks} stacks of slices", "split it into one volume each")
    if changes and steps.max() > _LARGEST_CHANGE * steps.min():
        raise VolumeError(
            name, f"has slices that are {steps.min():.3g} to {steps.max():.3g} mm apart", "split the series"
        )
    if gaps and not changes:
        missing = int(np.round(steps / usual).sum()) - len(steps)
        raise VolumeError(
            name, f"lacks {missing} of its DICOM slices, in {gaps} place(s)", "fetch them or leave it out"
        )
    if lost := count_lost(frames, steps):
        raise VolumeError(
            name, f"lacks {lost} of its DICOM slices, by their numbers and positions", "fetch them or leave it out"
        )


def _runs(steps: np.ndarray) -> list[int]:
    """Lengths of the runs of equal steps."""
    lengths, first = [1], steps[0]
    for step in steps[1:]:
        if abs(step - first) <= _SAME_STEP * first:
            lengths[-1] += 1
        else:
            lengths.append(1)
            first = step
    return lengths


def _affine(frame: Frame, origin: np.ndarray, step: np.ndarray) -> np.ndarray:
    _, row, column = _placed(frame)
    between_rows, between_columns = frame.pixel or (1.0, 1.0)
    affine = np.eye(4)
    affine[:3] = np.stack([row * between_columns, column * between_rows, step, origin], axis=1)
    return np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine  # DICOM's axes go to left and posterior


def _along(frame: Frame) -> float:
    position, row, column = _placed(frame)
    return float(np.dot(np.cross(row, column), position))


def _placed(frame: Frame) -> np.ndarray:
    assert frame.place is not None  # `choose_slices` has left out the others
    return frame.place


def _directions(places: np.ndarray, name: str) -> np.ndarray:
    """The mean directions of row and column, made unit vectors at right angles."""
    row, column = places[:, 1].mean(0), places[:, 2].mean(0)
    lengths = np.linalg.norm(row), np.linalg.norm(column)
    if not all(0.99 < length < 1.01 for length in lengths) or abs(row @ column) > 1e-2:
        raise VolumeError(name, "has slices whose rows and columns have no valid directions", "leave it out")
    row = row / lengths[0]
    column = column - (row @ column) * row
    return np.stack([row, column / np.linalg.norm(column)])


def _alike(one: Frame, other: Frame) -> bool:
    return not _differences(one, other)


def _differences(one: Frame, other: Frame) -> list[str]:
    a, b = np.array(one.pixel), np.array(other.pixel)
    found = {
        "size": one.size != other.size,
        "pixel spacing": bool((np.abs(a - b) > _SAME_PIXEL * a).any()),
        "orientation": bool(np.abs(_placed(one)[1:] - _placed(other)[1:]).max() > _SAME_DIRECTION),
    }
    return [kind for kind, differs in found.items() if differs]


def _difference(main: Frame, others: Sequence[Frame]) -> str:
    kinds = {kind for other in others for kind in _differences(main, other)}
    return " and ".join(kind for kind in ("size", "pixel spacing", "orientation") if kind in kinds)


def _refuse_unusable(frames: Sequence[Frame], name: str) -> None:
    if any(frame.odd == "in colour" for frame in frames):
        raise VolumeError(name, "holds colours, not one value per voxel", "leave it out")
    if any(frame.odd == "a mosaic of slices" for frame in frames):
        raise VolumeError(name, "holds mosaics, many slices in one image", "convert it to NIfTI, as with dcm2niix")
    if any(frame.odd == "a localizer" for frame in frames):
        raise VolumeError(name, "holds localizers, no slices of a volume", "leave it out")
    if any(frame.place is None for frame in frames):
        raise VolumeError(name, "has slices without a position", "leave it out")
    if any(frame.pixel is None for frame in frames):
        raise VolumeError(name, "has slices without a pixel spacing", "leave it out")
