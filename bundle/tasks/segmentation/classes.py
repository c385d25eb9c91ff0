# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""The classes of a data set, from the command line or from its dataset.json."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bundle.data.dataset_json import read_json
from bundle.errors import UserError

__all__ = ["pick_classes"]


def pick_classes(classes: Mapping[str, int], dataset_dir: str | os.PathLike[str]) -> Mapping[str, int]:
    """`classes` as given, or the `labels` of the data set's json if none are given.

    Args:
        classes: value in the label maps by the name of each class.
        dataset_dir: a json, or a folder that may hold a `dataset.json`: `{"0": "background", "1": "liver"}` as in the
            MSD, or `{"background": 0, "liver": 1}` as in nnU-Net.

    Returns:
        The classes without the background, by rising value; `classes` if the json says nothing.

    Raises:
        UserError: if there is no such folder or json, or the json has labels that are no classes: a region of several
            values, a label to ignore.
    """
    root = Path(dataset_dir)
    if not root.exists():  # told before anything is built for it
        raise UserError(f"--dataset_dir {root} does not exist: give the folder or the json of labelled volumes")
    listed = root / "dataset.json" if root.is_dir() else root
    if classes or not listed.is_file():
        return classes
    labels = read_json(listed).get("labels")
    if not isinstance(labels, Mapping):
        return classes
    found = dict(_class(listed, name, value) for name, value in labels.items())
    return {name: value for name, value in sorted(found.items(), key=lambda pair: pair[1]) if value != 0}


def _class(listed: Path, key: Any, entry: Any) -> tuple[str, int]:
    """A class's name and value."""
    if isinstance(entry, str) and str(key).isdecimal():  # the MSD puts the value first
        return entry, int(key)
    remedy = "give --classes, such as {liver: 1}"
    if isinstance(entry, list):
        raise UserError(f"{listed} has the region {key!r} of the values {entry}, which is no class: {remedy}")
    if isinstance(entry, bool) or not isinstance(entry, int):
        raise UserError(f"{listed} gives the label {key!r} the value {entry!r}, no whole number: {remedy}")
    if str(key).lower() == "ignore" and entry != 0:
        raise UserError(f"{listed} has the label 'ignore', and voxels cannot be left out of the loss: {remedy}")
    return str(key), entry
