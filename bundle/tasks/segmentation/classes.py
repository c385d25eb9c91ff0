# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""The classes of a data set, from the command line or from its dataset.json."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bundle.data.dataset_json import read_json
from bundle.errors import UserError

__all__ = ["ignored_value", "pick_classes"]


def pick_classes(
    classes: Mapping[str, int], dataset_dir: str | os.PathLike[str], *, regions: bool = False
) -> Mapping[str, Any]:
    """`classes` as given, or the `labels` of the data set's json if none are given.

    Args:
        classes: value in the label maps by the name of each class.
        dataset_dir: a json, or a folder that may hold a `dataset.json`: `{"0": "background", "1": "liver"}` as in the
            MSD, or `{"background": 0, "liver": 1}` as in nnU-Net.
        regions: whether a class may have several values, and a label to ignore is left out: for an evaluation.

    Returns:
        The classes without the background, by rising value, regions first, of most values first; `classes` if the json
        says nothing.

    Raises:
        UserError: if there is no such folder or json, or the json has labels that are no classes: a region of several
            values, a label to ignore.
    """
    listed = _json_of(dataset_dir)
    labels = None if classes or listed is None else read_json(listed).get("labels")
    if listed is None or not isinstance(labels, Mapping):
        return classes
    entries = [(name, value) for name, value in labels.items() if not (regions and _is_ignored(name, value))]
    found = dict(_class(listed, name, value, regions) for name, value in entries)
    return {name: value for name, value in sorted(found.items(), key=_widest_first) if value != 0}


def ignored_value(dataset_dir: str | os.PathLike[str]) -> int | None:
    """The value of the label `ignore` in nnU-Net's `dataset.json`; None where there is none.

    Args:
        dataset_dir: as for `pick_classes`.

    Raises:
        UserError: if there is no such folder or json.
    """
    listed = _json_of(dataset_dir)
    labels = None if listed is None else read_json(listed).get("labels")
    entries = labels.items() if isinstance(labels, Mapping) else ()
    return next((value for name, value in entries if _is_ignored(name, value)), None)


def _json_of(dataset_dir: str | os.PathLike[str]) -> Path | None:
    """The json of a data set, None where it has none."""
    root = Path(dataset_dir)
    if not root.exists():  # told before anything is built for it
        raise UserError(f"--dataset_dir {root} does not exist: give the folder or the json of labelled volumes")
    listed = root / "dataset.json" if root.is_dir() else root
    return listed if listed.is_file() else None


def _is_value(entry: Any) -> bool:
    return isinstance(entry, int) and not isinstance(entry, bool)


def _is_ignored(key: Any, entry: Any) -> bool:
    return str(key).lower() == "ignore" and _is_value(entry) and entry != 0


def _widest_first(pair: tuple[str, Any]) -> tuple[int, int]:
    value = pair[1]
    return (0, value) if isinstance(value, int) else (-len(value), 0)


def _class(listed: Path, key: Any, entry: Any, regions: bool) -> tuple[str, Any]:
    """A class's name and value, or a region's values."""
    if isinstance(entry, str) and str(key).isdecimal():  # the MSD puts the value first
        return entry, int(key)
    remedy = "give --classes, such as {liver: 1}"
    if isinstance(entry, list) and regions and entry and all(map(_is_value, entry)):
        return str(key), entry[0] if len(entry) == 1 else entry
    if isinstance(entry, list):
        raise UserError(
            f"{listed} has the region {key!r} of the values {entry}, which is no class to train on: {remedy}, with a "
            "value for each class; configs/evaluate_segmentation.yaml takes regions"
        )
    if not _is_value(entry):
        raise UserError(f"{listed} gives the label {key!r} the value {entry!r}, no whole number: {remedy}")
    if _is_ignored(key, entry):
        raise UserError(f"{listed} has the label 'ignore', and voxels cannot be left out of the loss: {remedy}")
    return str(key), entry
