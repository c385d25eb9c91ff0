# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""Which classes an evaluation of label maps compares, by which values, and within how many mm."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from bundle.data import FoundVolume
from bundle.errors import UserError
from bundle.tasks.segmentation.classes import pick_classes
from bundle.tasks.segmentation.labels import check_classes

__all__ = ["pick_evaluated", "predicted_classes", "same_names", "tolerances"]


logger = logging.getLogger(__name__)


def tolerances(tolerance_mm: float | Mapping[str, float], classes: Mapping[str, int]) -> dict[str, float]:
    """Each class's tolerance in mm, from one for all or from one each; a UserError says what does not fit."""
    remedy = "give mm, such as 2, or one for each class, such as {liver: 3, tumour: 1}"
    given = dict(tolerance_mm) if isinstance(tolerance_mm, Mapping) else dict.fromkeys(classes, tolerance_mm)
    if set(given) != set(classes):
        raise UserError(f"--tolerance_mm {tolerance_mm} does not name the classes {', '.join(classes)}: {remedy}")
    for value in given.values():
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
            raise UserError(f"--tolerance_mm {tolerance_mm} does not fit: {remedy}")
    return {name: float(given[name]) for name in classes}


def same_names(
    given: Mapping[str, int] | None, classes: Mapping[str, int], predicted: Mapping[str, int]
) -> dict[str, int]:
    """The values in the predictions of the evaluated classes: the given ones, else those that the predictions tell.

    Where the predictions name none of the classes, their values are those of the reference, and the log says so.

    Raises:
        UserError: if the names do not fit, or the predictions name some of the classes alone.
    """
    if given:
        check_classes(given)
        if set(given) != set(classes):
            wanted = ", ".join(classes)
            raise UserError(f"--prediction_classes names {', '.join(given)}: name the classes, which are {wanted}")
        return {name: given[name] for name in classes}
    lacking = [name for name in classes if name not in predicted]
    if not lacking:
        return {name: predicted[name] for name in classes}
    if len(lacking) < len(classes):
        raise UserError(
            f"--classes has {lacking[0]!r}, and the predictions have {', '.join(predicted)} alone: leave it out, or "
            f"give --prediction_classes with the values in the predictions, such as {{{lacking[0]}: 1}}"
        )
    if predicted:
        names = ", ".join(predicted)
        logger.warning("the predictions name other classes, %s: their values are taken to be those of --classes", names)
    return dict(classes)


def pick_evaluated(
    classes: Mapping[str, int],
    predicted: Mapping[str, int],
    dataset_dir: Path,
    predictions: Path,
    volumes: Sequence[FoundVolume],
) -> Mapping[str, int]:
    """The classes that are given, that were predicted, or that a json or the names of the masks say."""
    if classes:
        return classes
    # of a folder such as labelsTr the json is in the one above
    listed = pick_classes({}, dataset_dir) or pick_classes({}, dataset_dir.parent)
    if predicted and listed:
        if lacking := [name for name in predicted if name not in listed]:
            raise UserError(
                f"the predictions have the class {lacking[0]}, and the dataset.json of {dataset_dir} names "
                f"{', '.join(listed)}: give --classes with the values of the reference, such as {{{lacking[0]}: 1}}"
            )
        return {name: listed[name] for name in predicted}
    if predicted:
        return predicted
    maps = [volume.annotations["label"] for volume in volumes]
    structures = sorted({name for masks in maps if isinstance(masks, Mapping) for name in masks})
    found = listed or pick_classes({}, predictions) or {name: n for n, name in enumerate(structures, start=1)}
    if not found:
        raise UserError(
            f"--classes is missing and neither {dataset_dir} nor {predictions} has a json that names them: give "
            "--classes, such as {liver: 1}"
        )
    return found


def predicted_classes(predictions: Path) -> Mapping[str, int]:
    """What `about.json` of a folder of predictions says, or the `dataset.json` that nnU-Net puts there."""
    try:
        content = json.loads((predictions / "about.json").read_text())
    except (OSError, ValueError):
        content = None
    settings = content.get("settings") if isinstance(content, Mapping) else None
    classes = settings.get("classes") if isinstance(settings, Mapping) else None
    if isinstance(classes, Mapping):
        return classes
    try:
        return pick_classes({}, predictions)
    except UserError:  # it names regions, or is no json: the classes are told in another way, or that is said
        return {}
