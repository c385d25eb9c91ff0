# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""Connected components of a label map: the largest of a class is kept, small ones are removed.

Voxels are connected if they share a face, an edge or a corner: 26 neighbours, as in MONAI's transforms and in nnU-Net.
SciPy labels the components. MONAI's `KeepLargestConnectedComponent` and `RemoveSmallObjects` need scikit-image and one
channel per class; here only the box around a class is held, with 4 bytes per voxel.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform
from scipy import ndimage

from bundle.errors import UserError

__all__ = ["CleanComponentsd", "clean_components", "component_sizes", "voxel_ml"]

_NEIGHBOURS = np.ones((3, 3, 3), dtype=bool)
#: voxels that are counted at a time: `numpy.bincount` makes 8 bytes of each
_AT_A_TIME = 2**24


def clean_components(
    label_map: np.ndarray,
    affine: np.ndarray,
    *,
    classes: Mapping[str, int],
    largest_component: Sequence[str] | bool = False,
    remove_below_ml: Mapping[str, float] | float = 0.0,
) -> np.ndarray:
    """A label map without the components that are not wanted; their voxels become background.

    First the largest component of a class is kept, then what is too small is removed, even if it is the only one. Of
    components of one size the first one in the array counts as the largest.

    Args:
        label_map: integers ``[D, H, W]``. It is not changed.
        affine: ``[4, 4]``, from index to mm: what a voxel's volume is told by.
        classes: value in the label map by the name of each class.
        largest_component: names of the classes of which only the largest component stays; True means all classes.
        remove_below_ml: components of a smaller volume are removed; a volume for each class, or one for all.

    Returns:
        The label map, of the same type. It is the given array if nothing is wanted.

    Raises:
        UserError: if an option names an unknown class, or a volume is no number from 0 up.

    Example:
        >>> import numpy as np
        >>> from bundle.tasks.segmentation import clean_components
        >>> label_map = np.zeros((6, 6, 6), dtype=np.uint8)
        >>> label_map[0, 0, :3] = 7
        >>> label_map[5, 5, 5] = 7
        >>> cleaned = clean_components(label_map, np.eye(4), classes={"liver": 7}, largest_component=True)
        >>> int((label_map == 7).sum()), int((cleaned == 7).sum())
        (4, 3)
    """
    kept, smallest = _largest_wanted(largest_component, classes), _smallest_wanted(remove_below_ml, classes)
    wanted = [name for name in classes if name in kept or smallest[name] > 0]
    if not wanted:
        return label_map
    cleaned, voxel = label_map.copy(), voxel_ml(affine)
    for name, box, components in _labelled(label_map, {name: classes[name] for name in wanted}):
        sizes = _counts(components)
        stays = np.ones(len(sizes), dtype=bool)
        if name in kept:
            stays[:] = False
            stays[1 + sizes[1:].argmax()] = True
        stays &= sizes * voxel >= smallest[name] * (1 - 1e-9)  # a component of that very volume stays
        stays[0] = True  # what is not of this class
        for part, numbers in zip(cleaned[box], components):  # by parts: an index of the whole would be a mask of it
            part[~stays[numbers]] = 0
    return cleaned


class CleanComponentsd(MapTransform):
    """Dictionary form of `clean_components`, for label maps ``[1, D, H, W]`` with an affine.

    Args:
        keys: of the label maps, each a `MetaTensor`.
        classes: as for `clean_components`.
        largest_component: as for `clean_components`.
        remove_below_ml: as for `clean_components`.

    Raises:
        UserError: as `clean_components`, when it is made.
    """

    def __init__(
        self,
        keys: KeysCollection = "pred",
        *,
        classes: Mapping[str, int],
        largest_component: Sequence[str] | bool = False,
        remove_below_ml: Mapping[str, float] | float = 0.0,
    ) -> None:
        super().__init__(keys)
        _largest_wanted(largest_component, classes)
        _smallest_wanted(remove_below_ml, classes)
        self.options: dict[str, Any] = {
            "classes": dict(classes), "largest_component": largest_component, "remove_below_ml": remove_below_ml,
        }  # fmt: skip

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        item = dict(data)
        for key in self.key_iterator(item):
            image: MetaTensor = item[key]
            cleaned = clean_components(image[0].numpy(), np.asarray(image.affine), **self.options)
            item[key] = MetaTensor(cleaned[None], affine=image.affine)
        return item


def component_sizes(label_map: np.ndarray, classes: Mapping[str, int]) -> dict[str, np.ndarray]:
    """The number of voxels of each component, by class; an empty array for a class that is not there.

    Args:
        label_map: integers ``[D, H, W]``.
        classes: value in the label map by the name of each class.
    """
    sizes: dict[str, np.ndarray] = {name: np.zeros(0, dtype=np.int64) for name in classes}
    for name, _, components in _labelled(label_map, classes):
        sizes[name] = _counts(components)[1:]
    return sizes


def voxel_ml(affine: np.ndarray) -> float:
    """The volume of a voxel in mL; right for tilted axes, too."""
    return float(abs(np.linalg.det(np.asarray(affine, dtype=np.float64)[:3, :3]))) / 1000


def _labelled(
    label_map: np.ndarray, classes: Mapping[str, int]
) -> Iterator[tuple[str, tuple[slice, slice, slice], np.ndarray]]:
    """Each class that is there: its name, the box around it, and the numbers of its components in that box."""
    boxes = ndimage.find_objects(label_map, max_label=max(classes.values()))
    for name, value in classes.items():
        box = boxes[value - 1]
        if box is not None:
            components, _ = ndimage.label(label_map[box] == value, structure=_NEIGHBOURS)
            yield name, box, components


def _counts(components: np.ndarray) -> np.ndarray:
    """The number of voxels of each component, int64; number 0 is what is no component."""
    counts = np.zeros(int(components.max()) + 1, dtype=np.int64)
    flat = components.reshape(-1)
    for start in range(0, len(flat), _AT_A_TIME):
        counts += np.bincount(flat[start : start + _AT_A_TIME], minlength=len(counts))
    return counts


def _largest_wanted(largest_component: Sequence[str] | bool | None, classes: Mapping[str, int]) -> set[str]:
    """The names of the classes of which only the largest component stays."""
    if isinstance(largest_component, bool) or largest_component is None:
        return set(classes) if largest_component else set()
    names = [largest_component] if isinstance(largest_component, str) else list(largest_component)
    _check_names("--largest_component", names, classes)
    return set(names)


def _smallest_wanted(
    remove_below_ml: Mapping[str, float] | float | None, classes: Mapping[str, int]
) -> dict[str, float]:
    """The smallest volume of a component in mL, for each class."""
    if isinstance(remove_below_ml, Mapping):
        _check_names("--remove_below_ml", remove_below_ml, classes)
        given = {name: remove_below_ml.get(name, 0.0) for name in classes}
    else:
        given = dict.fromkeys(classes, remove_below_ml or 0.0)
    for value in given.values():
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not is_number or not math.isfinite(value) or value < 0:
            raise UserError(
                f"--remove_below_ml {remove_below_ml} does not fit: give mL from 0 up, such as 0.5, or by class, such "
                f'as "{{{next(iter(classes))}: 0.5}}"'
            )
    return given


def _check_names(option: str, names: Sequence[str] | Mapping[str, float], classes: Mapping[str, int]) -> None:
    unknown = [str(name) for name in names if name not in classes]
    if unknown:
        raise UserError(
            f"{option} names {', '.join(unknown)}, which the model does not know: choose of {', '.join(classes)}"
        )
