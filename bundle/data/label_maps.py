# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""Tells label maps from scans: by the path below the dataset's folder, else by the voxels."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath

import numpy as np
from monai.data import MetaTensor

from bundle.data.find import VOLUME_SUFFIXES
from bundle.data.grids import file_grid, is_same_grid
from bundle.data.names import without_ending
from bundle.data.printable import counted
from bundle.errors import UserError, VolumeError

__all__ = [
    "WHOLE",
    "check_include",
    "is_included",
    "label_map_by_path",
    "looks_like_label_map",
    "looks_like_probabilities",
    "odd_values",
    "refuse_label_map",
]

#: whole names of folders of label maps: of nnU-Net, the MSD, TotalSegmentator, and usual ones
_FOLDERS = re.compile(
    r"(gt_?)?(labels?(tr|ts|va|val|train|test)?|label_?maps?|masks?|segs?|segmentations?|ground_?truths?)",
    re.IGNORECASE,
)
#: words of a file's name that only a label map has, wherever they are in it, with or without a number
_ANYWHERE = re.compile(
    r"(seg|segm|dseg|aseg|probseg|softmax|probabilit(y|ies)|segmentations?|label_?maps?|groundtruth)\d*", re.IGNORECASE
)
#: words that make a label map at the end of a file's name, or where the rest of the name is a number
_AT_THE_END = re.compile(r"(labels?|masks?|gt|roi)\d*", re.IGNORECASE)

#: a label map has at most so many values (TotalSegmentator's have 118)
_MOST_VALUES = 256
#: the share of the voxels that have the most frequent value, the background, is at least
_LEAST_BACKGROUND = 0.3
#: of neighbouring voxels that are no background, the share of equal ones: label maps 0.98, scans of 8 bits up to 0.5
_LEAST_EQUAL = 0.75
#: a map of probabilities: below the first is background, above the second is sure
_BACKGROUND, _SURE = 0.01, 0.95
#: of its voxels that are no background at least this share is sure; of scans that were scaled to 0..1 between two
#: percentiles below 0.05, of one without background below 0.23
_LEAST_SURE = 0.25
#: how far a whole number may be off after a scaling
WHOLE = 1e-3


def check_include(include: Sequence[str] | str) -> tuple[str, ...]:
    """The patterns of `--include`.

    Raises:
        UserError: if they are no texts.
    """
    if isinstance(include, str):  # a command line's "[labels/*, *_seg.nii]" stays one text
        include = [part.strip().strip("'\"") for part in include.strip().strip("[]").split(",") if part.strip()]
    patterns = tuple(include or ())
    if not all(isinstance(pattern, str) for pattern in patterns):
        raise UserError(f'--include {include} does not fit: list patterns of paths, such as "[labels/*, *_seg.nii.gz]"')
    return patterns


def is_included(name: str, patterns: Sequence[str]) -> bool:
    """Whether a pattern fits the path below the dataset's folder, or the file's name; `*` stands for folders, too."""
    path = PurePosixPath(name)
    return any(fnmatch.fnmatchcase(str(path), p) or fnmatch.fnmatchcase(path.name, p) for p in patterns)


def label_map_by_path(name: str) -> tuple[str, str] | None:
    """Why a path is one of a label map, and a pattern that fits all its kind; None if it is not.

    Args:
        name: the path below the dataset's folder.

    Example:
        >>> label_map_by_path("imagesTr/liver_001.nii.gz")
        >>> label_map_by_path("labelsTr/liver_001.nii.gz")
        ('lies in a folder of label maps (labelsTr)', '*labelsTr/*')
        >>> label_map_by_path("BraTS_001/BraTS_001_seg.nii.gz")
        ('has the name of a label map (seg)', '*seg*')
    """
    *folders, file = PurePosixPath(name).parts
    for folder in folders:
        if _FOLDERS.fullmatch(folder):
            return f"lies in a folder of label maps ({folder})", f"*{folder}/*"
    words = [word for word in re.split(r"[^A-Za-z0-9]+", without_ending(file)) if word]
    rest = [word for word in words if not word.isdigit()]
    found = [word for word in words if _ANYWHERE.fullmatch(word)]
    found += [word for word in rest[-1:] if _AT_THE_END.fullmatch(word)]
    if not found:
        return None
    word = found[0].rstrip("0123456789")
    return f"has the name of a label map ({word})", f"*{word}*"


def looks_like_label_map(array: np.ndarray) -> bool:
    """Whether voxels are a label map's: few whole numbers, one of them the background, in flat regions.

    Args:
        array: ``[D, H, W]``.
    """
    middle = array[:, :, array.shape[2] // 2]
    if not _is_whole(middle) or np.unique(middle).size > _MOST_VALUES or not _is_whole(array):
        return False
    low, high = float(array.min()), float(array.max())
    # not a number that anybody gives a structure, or a quantitative map of small values, all of them nearly one number
    if high - low > 1e6 or high - low < 0.5:
        return False
    whole = np.rint(array - low).astype(np.int32)
    counts = np.bincount(whole.ravel())
    background = int(counts.argmax())
    if np.count_nonzero(counts) > _MOST_VALUES or counts[background] < _LEAST_BACKGROUND * whole.size:
        return False
    equal = both = 0
    for axis in range(3):
        one, other = (np.moveaxis(whole, axis, 0)[part] for part in (slice(1, None), slice(None, -1)))
        inside = (one != background) & (other != background)
        both += int(np.count_nonzero(inside))
        equal += int(np.count_nonzero(inside & (one == other)))
    return equal >= _LEAST_EQUAL * both


def looks_like_probabilities(array: np.ndarray) -> bool:
    """Whether voxels are a soft map of one structure: between 0 and 1, mostly 0, and many that are nearly 1.

    Args:
        array: ``[D, H, W]``.
    """
    if array.min() < -WHOLE or array.max() > 1 + WHOLE or _is_whole(array):
        return False
    inside = array > _BACKGROUND
    count = int(np.count_nonzero(inside))
    sure = int(np.count_nonzero(array >= _SURE))
    return 0 < count <= (1 - _LEAST_BACKGROUND) * array.size and sure >= _LEAST_SURE * count


def odd_values(values: np.ndarray) -> str:
    """Values that no label map has, in words.

    Args:
        values: one for each such voxel, ``[N]``, at least one.

    Example:
        >>> odd_values(np.array([0.5, 2.25, 0.5]))
        'values that are no whole numbers, such as 0.5 and 2.25 (3 voxels)'
    """
    different = list(dict.fromkeys(f"{value:g}" for value in values[:10_000].tolist()))[:3]
    such = " and ".join([", ".join(different[:-1]), different[-1]] if len(different) > 1 else different)
    return f"values that are no whole numbers, such as {such} ({counted(values.size, 'voxel')})"


def refuse_label_map(image: MetaTensor, file: str, name: str) -> list[str]:
    """Refuses a file of a folder if it looks like a label map, or like a map of probabilities of another file near it.

    A label map is refused wherever it lies: no scan has so few whole numbers in flat regions. A scan that was scaled to
    0 and 1 may be like a map of probabilities, so that one is refused only on the grid of a file near it. Near are the
    files of its folder and of the folder above, and those of its name in the folders beside its own.

    Args:
        image: ``[1, D, H, W]``, read from the file.
        file: its path.
        name: what to call it in the error.

    Returns:
        Notes on what is taken, but in doubt.

    Raises:
        VolumeError: if it is taken for a label map.
    """
    if image.shape[0] != 1:
        return []
    array = np.asarray(image[0])
    is_flat, remedy = looks_like_label_map(array), 'if it is a scan, name it with --include "[...]"'
    if not is_flat and not looks_like_probabilities(array):
        return []
    kind = "a label map: few whole numbers" if is_flat else "a map of probabilities: from 0 to 1"
    grid = tuple(image.shape[1:]), np.asarray(image.affine)
    others = (file_grid(other) for other in _near(Path(file)))
    if any(other is not None and is_same_grid(other, grid) for other in others):
        raise VolumeError(name, f"looks like {kind}, on the grid of another file near it", remedy)
    if is_flat:
        raise VolumeError(name, f"looks like {kind}", remedy)
    return [f"looks like {kind}; taken as a scan, since no file near it is on its grid"]


def _near(file: Path) -> Iterator[Path]:
    folder = file.parent
    case = re.sub(r"_\d{4}$", "", without_ending(file.name))
    for place, pattern in ((folder, "*"), (folder.parent, "*"), (folder.parent, f"*/{_literally(case)}*")):
        for other in place.glob(pattern):
            if other != file and other.name.lower().endswith(VOLUME_SUFFIXES) and other.is_file():
                yield other


def _literally(text: str) -> str:
    return re.sub(r"([*?[])", r"[\1]", text)


def _is_whole(array: np.ndarray) -> bool:
    return bool(np.issubdtype(array.dtype, np.integer) or (np.abs(array - np.rint(array)) <= WHOLE).all())
