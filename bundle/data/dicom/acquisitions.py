# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""What the slices of a series tell beside their places: their acquisition, and whether some of them are missing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Sequence
from itertools import pairwise

import numpy as np

from bundle.data.dicom.frames import Frame
from bundle.errors import VolumeError

__all__ = ["check_even_together", "check_not_mixed", "count_lost", "main_acquisition", "notes_on_missing"]

#: at most this share of a series may be slices of other acquisitions that are left out
_OTHER_SHARE = 0.1
#: steps of one acquisition that differ by less, as a share, are even
_EVEN = 0.05
#: slices may be missing where steps are this many times what the header says of them
_LARGER = 1.5
#: acquisitions are no volume together where at least this share of the steps is so much larger than the smallest
_UNEVEN_SHARE = 0.25


def main_acquisition(frames: list[Frame], along: np.ndarray) -> tuple[list[Frame], np.ndarray, list[str]]:
    """Leaves out a few slices of other acquisitions that lie on or between the even ones of the largest acquisition.

    Args:
        frames: of one size and orientation, in the order of their positions.
        along: positions along the normal, in mm.

    Returns:
        The frames that stay, their positions, and notes.
    """
    kinds = [(frame.acquisition, frame.time) for frame in frames]
    main, count = Counter(kinds).most_common(1)[0]
    is_main = np.array([kind == main for kind in kinds])
    others = len(frames) - count
    if not others or others > _OTHER_SHARE * count or count < 3:
        return frames, along, _note_on_mixed(kinds)
    steps = np.diff(along[is_main])
    is_even = steps.max() - steps.min() <= _EVEN * np.median(steps)
    inside = (along[~is_main] >= along[is_main][0]) & (along[~is_main] <= along[is_main][-1])
    if not is_even or not inside.all():
        return frames, along, _note_on_mixed(kinds)
    kept = [frame for frame, stays in zip(frames, is_main) if stays]
    return kept, along[is_main], [f"{others} image(s) left out: of another acquisition"]


def check_not_mixed(frames: Sequence[Frame], name: str) -> None:
    """Refuses slices of several volumes that lie between one another, though all of them make an even one.

    Args:
        frames: in the order of their positions, none of them twice.
        name: what to call the series in an error.

    Raises:
        VolumeError: if several temporal positions, echoes or stacks lie so.
    """
    kinds = {
        "temporal positions": [frame.time for frame in frames],
        "echoes": [frame.echo for frame in frames],
        "stacks": [frame.stack for frame in frames],
    }
    for kind, values in kinds.items():
        if _interleave(values):
            mixed = f"has slices of {len(set(values))} {kind} that lie between one another"
            raise VolumeError(name, mixed, "split it into one volume each")


def check_even_together(frames: Sequence[Frame], along: np.ndarray, name: str) -> None:
    """Refuses acquisitions that lie between one another over most of their length and make no even volume together.

    Each of them is one, as phases of a dynamic scan are, between which the table or the patient has moved. The reader
    would call what is between their steps missing slices.

    Args:
        frames: in the order of their positions, none of them twice.
        along: positions along the normal, in mm.
        name: what to call the series in an error.

    Raises:
        VolumeError: if they do.
    """
    numbers = [frame.acquisition[0] if frame.acquisition else "" for frame in frames]
    counts = Counter(numbers).most_common(2)
    changes, steps = sum(one != other for one, other in pairwise(numbers)), np.diff(along)
    if len(counts) < 2 or not _interleave(numbers) or changes <= counts[1][1]:
        return
    if np.mean(steps > _LARGER * steps.min()) >= _UNEVEN_SHARE:
        mixed = f"has slices of {len(set(numbers))} acquisitions that lie between one another, unevenly"
        raise VolumeError(name, mixed, "split it into one volume each")


def _note_on_mixed(kinds: Sequence[Hashable]) -> list[str]:
    """Of acquisitions that follow one another nothing is said; a scan of the chest and the abdomen is made so."""
    if not _interleave(kinds):
        return []
    return [f"slices of {len(set(kinds))} acquisitions lie between one another, read as one volume"]


def _interleave(kinds: Sequence[Hashable]) -> bool:
    return sum(one != other for one, other in pairwise(kinds)) >= len(set(kinds))


def count_lost(frames: Sequence[Frame], steps: np.ndarray) -> int:
    """Slices that are missing where both the image numbers and the positions leave places free; else 0.

    A spacing that really changes has no free numbers. Where every step leaves the same number of places free, the
    volume is one of larger spacing.
    """
    apart = _apart(frames)
    if apart is None or apart.min() == apart.max():
        return 0
    shortest = float(steps[apart == apart.min()].mean())
    fits = np.abs(steps / shortest - apart / apart.min()) < 0.1
    return int(apart.sum() // apart.min() - len(apart)) if fits.all() else 0


def notes_on_missing(frames: Sequence[Frame], along: np.ndarray) -> list[str]:
    """Says that the slices of an even volume may be every second one of a series."""
    apart, step = _apart(frames), float(np.median(np.diff(along)))
    if apart is not None and apart.min() > 1:
        return [f"image numbers go in steps of {apart.min()}, so other images of the series may be missing"]
    between = abs(frames[0].between or 0)
    if between > 0 and step > _LARGER * between:
        return [f"slices are {step:.3g} mm apart and not the {between:.3g} mm of the header, so some may be missing"]
    return []


def _apart(frames: Sequence[Frame]) -> np.ndarray | None:
    """By how much the image numbers of neighbours differ; None if they are not in order."""
    numbers = [frame.number for frame in frames]
    if any(number is None for number in numbers):
        return None
    apart = np.diff(np.array(numbers, dtype=np.int64))
    apart = -apart if apart[0] < 0 else apart
    return apart if apart.min() > 0 else None
