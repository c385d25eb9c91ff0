# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""Some of a data set's scans for training, others for validation, by name: for experiments on drawn people."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection
from dataclasses import replace

from bundle.data.found_volume import FoundVolume
from bundle.errors import UserError

__all__ = ["choose_volumes"]


def choose_volumes(
    dataset_dir: str | os.PathLike[str],
    *,
    find: Callable[[str | os.PathLike[str]], list[FoundVolume]],
    training: Collection[str],
    validation: Collection[str],
) -> list[FoundVolume]:
    """The scans that are named, whatever parts the data set itself has.

    Args:
        dataset_dir: as `find` takes it.
        find: what finds labelled scans, such as `bundle.tasks.segmentation.find_segmentations`.
        training: names of the scans to train on.
        validation: likewise to validate on.

    Raises:
        UserError: if there is no scan of that name.
    """
    found = {volume.name: volume for volume in find(dataset_dir)}
    if missing := [name for name in (*training, *validation) if name not in found]:
        raise UserError(f"{dataset_dir} has no scan {missing[0]}: name scans that are there, as the logs do")
    parts = {"training": training, "validation": validation}
    return [replace(found[name], part=part) for part, names in parts.items() for name in names]
