# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""Label maps as they are written: one file, or a mask of each structure, on the file's own grid."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from scipy import ndimage

from bundle.data import read_volume
from bundle.data.find import volume_files
from bundle.data.grids import Grid, same_place, turn
from bundle.data.label_maps import WHOLE, odd_values
from bundle.data.names import without_ending
from bundle.errors import UserError, VolumeError
from bundle.evaluation.mask_metrics import union_box

__all__ = [
    "Box",
    "Classes",
    "OtherGridError",
    "WrittenLabels",
    "describe_grid",
    "find_label_maps",
    "read_labels",
    "values_of",
]

#: the part of a volume that holds something, a slice for each axis; None where nothing is
Box = tuple[slice, ...] | None

#: the value of each class in a file by its name; a region has several, and may overlap other classes
Classes = Mapping[str, int | Sequence[int]]

#: value of a class
_HIGHEST = 65535


class OtherGridError(VolumeError):
    """A label map is not on the grid that it should have.

    Attributes:
        grid: that it has.
    """

    def __init__(self, name: str, problem: str, remedy: str, grid: Grid) -> None:
        super().__init__(name, problem, remedy)
        self.grid = grid

    def __reduce__(self) -> tuple[type[OtherGridError], tuple[str, str, str, Grid]]:  # type: ignore[override]
        return type(self), (self.path, self.problem, self.remedy, self.grid)


@dataclass(frozen=True)
class WrittenLabels:
    """The masks of a case, one for each class.

    Args:
        grid: voxels per axis, and the affine to RAS mm.
        masks: bool ``[D, H, W]`` by class, cut to `boxes`; a class whose mask is missing is missing.
        boxes: where in the volume each mask lies.
        resampled: whether they were on another grid.
        others: values of the file that no class has.
    """

    grid: Grid
    masks: Mapping[str, np.ndarray]
    boxes: Mapping[str, Box]
    resampled: bool = False
    others: tuple[int, ...] = ()

    def cut(self, name: str, box: tuple[slice, ...]) -> np.ndarray:
        """The mask of a class in a box, bool."""
        mask = np.zeros([part.stop - part.start for part in box], dtype=bool)
        own = self.boxes[name]
        if own is not None:
            common = [slice(max(o.start, b.start), min(o.stop, b.stop)) for o, b in zip(own, box)]
            if all(part.start < part.stop for part in common):
                mask[_moved(common, box)] = self.masks[name][_moved(common, own)]
        return mask

    def count(self, name: str) -> int:
        """The voxels of a class."""
        return int(np.count_nonzero(self.masks[name]))


def values_of(value: int | Sequence[int]) -> tuple[int, ...]:
    """The values of a class, of which a region has several."""
    return (value,) if isinstance(value, int) else tuple(value)


def find_label_maps(folder: Path, classes: Classes) -> dict[str, str | dict[str, str]]:
    """The label maps of a folder and its subfolders, by their names below it without an ending.

    Files that are named after classes are the masks of one case, and have the name of their folder, or of the folder
    above one that is called `segmentations`. A folder that `predict_segmentation` has written holds them below
    `label_maps`.

    Args:
        folder: to search.
        classes: value by name.

    Returns:
        The file, or the file of each structure.

    Raises:
        UserError: if there is no such folder, nothing in it, or two files of one name.
    """
    root = folder / "label_maps" if (folder / "label_maps").is_dir() else folder
    found: dict[str, str | dict[str, str]] = {}
    for path in volume_files(root) if root.is_dir() else ():
        name = without_ending(path.relative_to(root).as_posix())
        parts = name.split("/")
        if len(parts) > 1 and parts[-1] in classes:
            case = "/".join(parts[:-2] if parts[-2] == "segmentations" and len(parts) > 2 else parts[:-1])
            masks = found.setdefault(case, {})
            if isinstance(masks, dict):
                _put(masks, parts[-1], path)
        else:
            _put(found, name, path)
    if not found:
        state = "holds no label map" if root.is_dir() else "is no folder"
        raise UserError(f"--predictions {folder} {state}: give the folder of NIfTI, NRRD or MetaImage label maps")
    return found


def _put(found: dict[str, Any], name: str, path: Path) -> None:
    """Enters a file under its name without an ending. Two files of one name are refused; a map goes before masks."""
    first = found.get(name)
    if isinstance(first, str):
        names = f"{Path(first).name} and {path.name}"
        raise UserError(f"{path.parent} holds {names}, which have one name: keep one of them there")
    found[name] = str(path)


def read_labels(
    files: str | Mapping[str, str], classes: Classes, name: str, *, like: Grid | None = None, resample: bool = False
) -> WrittenLabels:
    """Reads the label map of a case, or its masks.

    Args:
        files: the file, or the file of the mask of each structure.
        classes: value in the file by the name of each class, of a region its values. Of masks the names alone count.
        name: of the case, for errors.
        like: the grid to bring it to. Voxels in another order are sorted; nothing is lost.
        resample: whether a map on another grid is resampled to it, nearest neighbour; else it is an error.

    Raises:
        OtherGridError: for a map on another grid.
        VolumeError: for a file that cannot be read, or holds values that are no whole numbers.
    """
    if isinstance(files, str):
        values, grid, resampled = _read(files, name, like, resample)
        cut, around, others = _split_values(values, classes)
        return WrittenLabels(grid, cut, around, resampled, others)
    masks: dict[str, np.ndarray] = {}
    boxes: dict[str, Box] = {}
    some_resampled, first_decides = False, like is None
    for structure in classes:
        if structure not in files:
            continue
        values, like, resampled = _read(files[structure], name, like, resample, of_masks=bool(boxes) and first_decides)
        boxes[structure] = box = _box(values)
        masks[structure] = values[box] != 0 if box is not None else np.zeros((0, 0, 0), dtype=bool)
        some_resampled |= resampled
    if like is None or not masks:
        raise VolumeError(name, "has no mask that is named after a class", "correct --classes")
    return WrittenLabels(like, masks, boxes, some_resampled)


def describe_grid(grid: Grid) -> str:
    """A grid in words: size, axes and affine."""
    shape, affine = grid
    axes = "".join(str(axis) for axis in nibabel.aff2axcodes(affine))
    rows = [[float(f"{value:.6g}") for value in row] for row in affine[:3]]
    return f"{' x '.join(map(str, shape))} voxels, axes {axes}, affine {rows}"


def _read(
    file: str, name: str, like: Grid | None, resample: bool, of_masks: bool = False
) -> tuple[np.ndarray, Grid, bool]:
    """The whole numbers of a file, uint16 ``[D, H, W]``, on the grid that is wanted, and whether they were not.

    With `of_masks` that grid is the one of another mask of the same case.
    """
    if not Path(file).exists():
        raise VolumeError(name, f"lacks its label map: {file} does not exist", "correct the list or put the file there")
    image = read_volume([file], f"{name}, its label map {file}", constant=True)
    grid: Grid = (tuple(image.shape[1:]), np.asarray(image.affine, dtype=np.float64))
    values = _whole_numbers(image.numpy()[0], name, file)
    del image
    if like is None:
        return values, grid, False
    values, grid = turn(values, grid, like)
    if same_place(grid, like):
        return values, like, False
    if of_masks and not resample:
        raise VolumeError(
            name,
            f"has masks on two grids: {file} has {describe_grid(grid)}; another one {describe_grid(like)}",
            "bring the masks of a case to one grid",
        )
    if not resample:
        raise OtherGridError(
            name,
            f"has a prediction on another grid: {describe_grid(grid)}; the reference: {describe_grid(like)}",
            "bring one to the grid of the other, or give --resample True",
            grid,
        )
    return _resample(values, grid, like), like, True


def _whole_numbers(array: np.ndarray, name: str, file: str) -> np.ndarray:
    """The values as uint16; negative ones, which no class can have, become 0. By parts, for large volumes."""
    values = np.empty(array.shape, dtype=np.uint16)
    for start in range(0, len(array), 32):
        part = array[start : start + 32]
        whole = np.rint(part)
        odd = np.abs(part - whole) > WHOLE
        if odd.any():
            raise VolumeError(name, f"has a label map with {odd_values(part[odd])} ({file})", "give whole numbers")
        if whole.max() > _HIGHEST:
            raise VolumeError(
                name, f"has a label map with the value {whole.max():g}, above {_HIGHEST} ({file})", "correct it"
            )
        values[start : start + 32] = whole.clip(0)
    return values


def _resample(values: np.ndarray, grid: Grid, like: Grid) -> np.ndarray:
    """Nearest neighbour; 0 outside."""
    to_source = np.linalg.inv(grid[1]) @ like[1]
    placed: np.ndarray = ndimage.affine_transform(
        values, to_source[:3, :3], to_source[:3, 3], like[0], order=0, mode="grid-constant", cval=0
    )
    return placed


def _split_values(
    values: np.ndarray, classes: Classes
) -> tuple[dict[str, np.ndarray], dict[str, Box], tuple[int, ...]]:
    """For each class its mask in the box that holds it, and the box; the values that no class has."""
    boxes: dict[str, Box] = dict.fromkeys(classes)
    wanted = sorted({number for value in classes.values() for number in values_of(value)})
    whole = _box(values)
    others: tuple[int, ...] = ()
    if whole is not None:
        inside = values[whole]
        present = np.zeros(_HIGHEST + 1, dtype=bool)
        numbers = np.zeros(_HIGHEST + 1, dtype=np.min_scalar_type(len(wanted)))
        numbers[wanted] = np.arange(1, len(wanted) + 1)
        numbered = np.empty(inside.shape, dtype=numbers.dtype)
        for part, target in zip(inside, numbered):  # slice by slice: numpy makes 8 bytes of each index
            present[part] = True
            target[...] = numbers[part]
        around = ndimage.find_objects(numbered, max_label=len(wanted))
        by_value = {value: box and _shift(box, whole) for value, box in zip(wanted, around)}
        boxes = {name: _around([by_value[one] for one in values_of(value)]) for name, value in classes.items()}
        others = tuple(int(value) for value in np.flatnonzero(present) if value and not numbers[value])
    empty = np.zeros((0, 0, 0), dtype=bool)
    masks = {
        name: empty if box is None else _is_one_of(values[box], values_of(classes[name])) for name, box in boxes.items()
    }
    return masks, boxes, others


def _box(values: np.ndarray) -> Box:
    """The part of a volume that is not 0."""
    found: list[tuple[slice, ...]] = ndimage.find_objects((values != 0).view(np.int8))
    return found[0] if found else None


def _is_one_of(values: np.ndarray, wanted: Sequence[int]) -> np.ndarray:
    """Where one of the wanted values is. One after the other: `numpy.isin` makes 8 bytes of each voxel."""
    found: np.ndarray = values == wanted[0]
    for value in wanted[1:]:
        found |= values == value
    return found


def _around(boxes: Sequence[Box]) -> Box:
    """The smallest box around boxes, None without any."""
    return union_box(*boxes) if any(boxes) else None


def _moved(box: Sequence[slice], by: tuple[slice, ...]) -> tuple[slice, ...]:
    """A box, counted from the start of another one."""
    return tuple(slice(part.start - outer.start, part.stop - outer.start) for part, outer in zip(box, by))


def _shift(box: tuple[slice, ...], by: tuple[slice, ...]) -> tuple[slice, ...]:
    return tuple(slice(own.start + outer.start, own.stop + outer.start) for own, outer in zip(box, by))
