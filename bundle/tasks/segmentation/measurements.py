# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""The volume of each class of a label map, in how many pieces it is, and whether the scan cuts it off."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import numpy as np
from monai.config import KeysCollection
from monai.transforms import MapTransform

from bundle.tasks.segmentation.components import component_sizes, voxel_ml

__all__ = ["MEASUREMENT_COLUMNS", "MeasureClassesd", "measure_classes"]

#: of measurements.csv, after the scan's name
MEASUREMENT_COLUMNS = ("class", "value", "ml", "components", "touches_border", "certainty")


def measure_classes(label_map: np.ndarray, affine: np.ndarray, *, classes: Mapping[str, int]) -> list[dict[str, Any]]:
    """A row of `measurements.csv` for each class, also for one that is not there.

    `ml` is the number of voxels times the volume of one. `components` counts pieces that do not touch each other, not
    even at a corner. `touches_border` says whether a voxel of the class lies on a face of the scan's grid: the scan may
    then show a part of the structure only.

    Args:
        label_map: integers ``[D, H, W]`` on the scan's own grid.
        affine: ``[4, 4]``, from index to mm.
        classes: value in the label map by the name of each class.

    Returns:
        For each class the cells by the names in `MEASUREMENT_COLUMNS`, but for `certainty`.

    Example:
        >>> import numpy as np
        >>> from bundle.tasks.segmentation import measure_classes
        >>> label_map = np.zeros((10, 10, 10), dtype=np.uint8)
        >>> label_map[2:7, 2:7, 5:] = 3  # 125 voxels of 8 mm^3
        >>> measure_classes(label_map, np.diag([2, 2, 2, 1]), classes={"liver": 3})
        [{'class': 'liver', 'value': 3, 'ml': 1.0, 'components': 1, 'touches_border': True}]
    """
    sizes, on_border, voxel = component_sizes(label_map, classes), _border_values(label_map), voxel_ml(affine)
    return [
        {
            "class": name,
            "value": value,
            "ml": round(float(sizes[name].sum() * voxel), 6),  # less than a voxel's rounding
            "components": len(sizes[name]),
            "touches_border": value in on_border,
        }
        for name, value in classes.items()
    ]


class MeasureClassesd(MapTransform):
    """Puts the rows of `measure_classes` under `tables`, `measurements`, where `PredictionTables` finds them.

    The `certainty` that `ToLabelMapd` has left is that of the label map before small parts were removed.

    Args:
        keys: of the label map, ``[1, D, H, W]``, a `MetaTensor`.
        classes: value in the label map by the name of each class.
    """

    def __init__(self, keys: KeysCollection = "pred", *, classes: Mapping[str, int]) -> None:
        super().__init__(keys)
        self.classes = dict(classes)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        item = dict(data)
        labels = item[self.first_key(item)]
        rows = measure_classes(np.asarray(labels[0]), np.asarray(labels.affine), classes=self.classes)
        certainty = item.get("certainty", {})
        rows = [{**row, "certainty": certainty.get(row["class"])} for row in rows]
        return {**item, "tables": {**item.get("tables", {}), "measurements": rows}}


def _border_values(label_map: np.ndarray) -> set[int]:
    """The values on the six faces of the grid."""
    faces = [np.take(label_map, end, axis=axis) for axis in range(label_map.ndim) for end in (0, -1)]
    return {int(value) for face in faces for value in np.unique(face)}
