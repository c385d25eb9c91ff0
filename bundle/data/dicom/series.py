# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""Reads one volume from the files of a DICOM series."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from bundle.data.dicom.acquisitions import check_even_together, check_not_mixed, main_acquisition, notes_on_missing
from bundle.data.dicom.frames import Frame, read_all_frames
from bundle.data.dicom.pixels import StoredValues, through_table
from bundle.data.dicom.placement import Grid, choose_slices, in_order, lay_out
from bundle.data.memory_order import last_axis_fastest
from bundle.data.sanity import check_size
from bundle.errors import VolumeError

__all__ = ["DicomVolume", "Slices", "arrange", "read_series"]

#: two slices are at one place if they are nearer than this share of the usual step
_SAME_PLACE = 0.01
#: what RescaleType may say of a CT whose values are no Hounsfield units, by the standard's defined terms
_NOT_HOUNSFIELD = ("OD", "MGML", "Z_EFF", "ED", "EDW", "PCT", "ETHU")


@dataclass(frozen=True)
class DicomVolume:
    """A volume that was read.

    Attributes:
        array: float32 ``[columns, rows, slices]``, rescaled.
        affine: from index to RAS mm.
        notes: what was left out or resampled, a sentence each.
    """

    array: np.ndarray
    affine: np.ndarray
    notes: tuple[str, ...]


def read_series(files: Sequence[str], name: str) -> DicomVolume:
    """Reads the slices or multi-frame files of one series.

    Args:
        files: in any order.
        name: what to call the series in an error.

    Raises:
        VolumeError: if they are not one regular volume, or cannot be made one without a guess.
    """
    stored = StoredValues()
    slices = arrange(list(read_all_frames(list(files))), name, stored)
    values, doubts = _rescaled(slices.frames, stored)
    if slices.grid.at is not None:
        values = _between(values, slices.grid)
    notes = (*slices.notes, *doubts)
    return DicomVolume(last_axis_fastest(values.transpose(2, 1, 0)), slices.grid.affine, notes)


@dataclass(frozen=True)
class Slices:
    """The slices that are a volume, without their pixels.

    Attributes:
        frames: in the order of their positions, none of them twice.
        grid: on which they are, or between whose slices they are.
        notes: what was left out or is to be resampled, a sentence each.
    """

    frames: list[Frame]
    grid: Grid
    notes: tuple[str, ...]

    @property
    def shape(self) -> tuple[int, int, int]:
        """Columns, rows and slices of the volume."""
        rows, columns = self.frames[0].size
        return columns, rows, self.grid.count


def arrange(frames: list[Frame], name: str, stored: Callable[[str, int], np.ndarray]) -> Slices:
    """Chooses and orders the images of a series that are a volume.

    Args:
        frames: all images of the series, in any order.
        name: what to call the series in an error.
        stored: gives the stored values of an image, by its file and its number there. Of two images at one place they
            are compared.

    Raises:
        VolumeError: as `read_series`.
    """
    frames, notes = choose_slices(frames, name)
    if len(frames) < 2:
        raise VolumeError(name, "is a DICOM series of one slice", "leave it out: volumes are needed")
    _check_values_mean_the_same(frames, name)
    frames, along = in_order(frames)
    frames, along, more = main_acquisition(frames, along)
    notes += more
    frames, along, dropped = _each_once(frames, along, stored, name)
    if dropped:
        notes.append(f"{dropped} image(s) left out: equal copies of a slice")
    check_not_mixed(frames, name)
    check_even_together(frames, along, name)
    grid = lay_out(frames, along, name)
    notes += notes_on_missing(frames, along)
    check_size((*frames[0].size, max(grid.count, len(frames))), name)
    return Slices(frames, grid, tuple([*notes, grid.note] if grid.at is not None else notes))


def _check_values_mean_the_same(frames: Sequence[Frame], name: str) -> None:
    units = {frame.units for frame in frames if frame.units not in ("", "US")}
    if len(units) > 1:
        raise VolumeError(name, "mixes slices whose values have different units", "split the series")
    if frames[0].modality == "CT" and units & set(_NOT_HOUNSFIELD):
        raise VolumeError(name, f"is a CT whose values are {units.pop()}, no Hounsfield units", "leave it out")
    if any(frame.slope == 0 or not np.isfinite([frame.slope, frame.intercept]).all() for frame in frames):
        raise VolumeError(name, "has slices whose rescale slope is zero or no number", "correct it or leave it out")


def _each_once(
    frames: list[Frame], along: np.ndarray, stored: Callable[[str, int], np.ndarray], name: str
) -> tuple[list[Frame], np.ndarray, int]:
    """Without the equal copies of slices, and how many these were."""
    steps = np.diff(along)
    real = steps[steps > 1e-3 * max(steps.max(), 1e-6)]
    if not len(real) or along[-1] == along[0]:
        _refuse_several(name)
    near = _SAME_PLACE * float(np.median(real))
    kept = [0]
    for number in range(1, len(frames)):
        if along[number] - along[kept[-1]] > near:
            kept.append(number)
        elif not _are_copies(frames[kept[-1]], frames[number], stored):
            _refuse_several(name)
    return [frames[i] for i in kept], along[kept], len(frames) - len(kept)


def _refuse_several(name: str) -> None:
    raise VolumeError(name, "has several slices at one position (a 4D series?)", "split it into 3D volumes")


def _are_copies(one: Frame, other: Frame, stored: Callable[[str, int], np.ndarray]) -> bool:
    if one.time != other.time or one.place is None or other.place is None:
        return False
    is_near = bool(np.abs(one.place[0] - other.place[0]).max() < 0.1 * min(one.pixel or (1.0,)))
    tables = [frame.table and frame.table.ModalityLUTSequence for frame in (one, other)]
    scaling = (one.slope, one.intercept) == (other.slope, other.intercept) and tables[0] == tables[1]
    return is_near and scaling and np.array_equal(stored(one.file, one.index), stored(other.file, other.index))


def _rescaled(frames: Sequence[Frame], stored: StoredValues) -> tuple[np.ndarray, list[str]]:
    """Float32 ``[slices, rows, columns]``, and notes on doubts.

    Padding has the lowest value of the rest, which is air or background.
    """
    values = np.empty((len(frames), *frames[0].size), dtype=np.float32)
    paddings: dict[int, np.ndarray] = {}
    lowest = np.inf
    # a multi-frame file is decoded once, whatever the order of its frames
    for number in sorted(range(len(frames)), key=lambda i: frames[i].file):
        frame = frames[number]
        plane = stored(frame.file, frame.index)
        values[number] = _meant(plane, frame)
        padding = None if frame.padding is None else (plane >= frame.padding[0]) & (plane <= frame.padding[1])
        if padding is not None and padding.any():
            paddings[number] = padding
            lowest = min(lowest, float(values[number].min(initial=np.inf, where=~padding)))
        else:
            lowest = min(lowest, float(values[number].min()))
    notes = _doubts_of_padding(values, paddings, lowest)
    for number, padding in paddings.items():
        values[number][padding] = lowest if np.isfinite(lowest) else 0
    return values, notes


def _doubts_of_padding(values: np.ndarray, paddings: Mapping[int, np.ndarray], lowest: float) -> list[str]:
    """A note on padding that has no value of its own, such as 0 in a CT, where water has it."""
    if not paddings:
        return []
    padded = np.concatenate([values[number][padding] for number, padding in paddings.items()])
    others = (values[n].max(initial=-np.inf, where=~paddings[n] if n in paddings else True) for n in range(len(values)))
    if not lowest < padded.min() or not padded.max() < max(others):
        return []
    return [f"the header's value of padding, {padded.min():g}, lies between other values; it is taken as background"]


def _meant(stored: np.ndarray, frame: Frame) -> np.ndarray:
    """What stored values mean: by the slice's table, or by its slope and intercept."""
    if frame.table is not None:
        return through_table(stored, frame.table)
    return stored if (frame.slope, frame.intercept) == (1, 0) else stored * frame.slope + frame.intercept


def _between(values: np.ndarray, grid: Grid) -> np.ndarray:
    """Slices interpolated linearly at the fractional numbers `grid.at`."""
    assert grid.at is not None
    low = np.minimum(np.floor(grid.at + 1e-6).astype(int), len(values) - 1)
    share = np.clip(grid.at - low, 0, 1).astype(np.float32)
    share[share < 1e-5] = 0
    high = np.minimum(low + 1, len(values) - 1)
    made = np.empty((grid.count, *values.shape[1:]), dtype=np.float32)
    for k in range(grid.count):
        made[k] = values[low[k]] if share[k] == 0 else values[low[k]] * (1 - share[k]) + values[high[k]] * share[k]
    return made
