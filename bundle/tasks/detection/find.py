# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""Finds volumes with boxes."""

from __future__ import annotations

import math
import os
from pathlib import Path

from bundle.data.found_volume import FoundVolume
from bundle.data.lists import find_labelled
from bundle.errors import UserError

__all__ = ["find_boxes"]


def find_boxes(dataset_dir: str | os.PathLike[str], part: str = "") -> list[FoundVolume]:
    """Volumes with a list of boxes each, for detection.

    Args:
        dataset_dir: a json as MONAI's detection tutorials use (or a folder with a `dataset.json`): `training` and
            optionally `validation` list objects with `image`, `box` and `label`. A box is [x, y, z, width, height,
            depth], its centre and size in mm in the image's RAS world coordinates; a label counts from 0. An empty list
            of boxes is a volume without a finding.
        part: as for `bundle.data.lists.find_labelled`.

    Returns:
        Volumes whose annotations hold `box` and `label`, sorted by name.

    Raises:
        UserError: if nothing is found, or the list cannot be used.
    """
    root = Path(dataset_dir)
    listed = root / "dataset.json" if root.is_dir() else root
    if not listed.is_file():
        raise UserError(f"--dataset_dir {root} has no dataset.json: give one with training: [{{image, box, label}}]")
    volumes = find_labelled(listed, ("box", "label"), part)
    for volume in volumes:
        boxes, labels = volume.annotations["box"], volume.annotations["label"]
        if not isinstance(boxes, list) or not isinstance(labels, list) or len(boxes) != len(labels):
            raise UserError(f"{listed} gives {volume.name} not one label for each box: list as many labels as boxes")
        if not all(_is_box(box) for box in boxes):
            raise UserError(
                f"{listed} gives {volume.name} a box that is not x, y, z, width, height, depth in mm: list six "
                "numbers, the last three above 0"
            )
    return sorted(volumes, key=lambda volume: volume.name)


def _is_box(box: object) -> bool:
    if not isinstance(box, list) or len(box) != 6:
        return False
    numbers = [value for value in box if isinstance(value, int | float) and not isinstance(value, bool)]
    return len(numbers) == 6 and all(map(math.isfinite, numbers)) and min(numbers[3:]) > 0
