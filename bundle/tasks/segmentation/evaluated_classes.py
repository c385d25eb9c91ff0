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
from bundle.evaluation.written_labels import Classes, values_of
from bundle.tasks.segmentation.classes import ignored_value, pick_classes
from bundle.tasks.segmentation.labels import check_classes

__all__ = ["check_evaluated", "pick_evaluated", "predicted_classes", "same_names", "tolerances"]


logger = logging.getLogger(__name__)


def check_evaluated(classes: Classes, option: str = "--classes") -> None:
    """Refuses what are no classes to evaluate: as `check_classes`, but a class may be a region of several values.

    Regions may overlap, as nnU-Net's do: `{whole: [1, 2], core: 2}`.

    Args:
        classes: value in the label maps by the name of each class, or a list of values.
        option: that said so, for the message.

    Raises:
        UserError: if they do not fit.
    """
    if not isinstance(classes, Mapping) or not any(isinstance(value, list | tuple) for value in classes.values()):
        check_classes(classes)  # type: ignore[arg-type]
        return
    sets = [frozenset(value) if isinstance(value, list | tuple) else frozenset([value]) for value in classes.values()]
    numbers = [value for one in sets for value in one]
    whole = all(isinstance(value, int) and not isinstance(value, bool) and 0 < value < 65536 for value in numbers)
    if not whole or not all(sets) or len(set(sets)) < len(sets):
        raise UserError(
            f"{option} {classes} does not fit: give each class its own value, or a list of values above 0, such as "
            "{whole: [1, 2], core: 2}"
        )


def check_ignored(
    ignore: int | None, classes: Classes, dataset_dir: Path, volumes: Sequence[FoundVolume] = ()
) -> int | None:
    """The value of voxels in the reference that count in nothing: the given one, or what a `dataset.json` says.

    Args:
        ignore: value, or None.
        classes: that are evaluated.
        dataset_dir: as for `pick_classes`; of a folder such as labelsTr the json is in the one above.
        volumes: the references.

    Raises:
        UserError: if it is no value, or that of a class, or references are masks of structures, which have no values.
    """
    if ignore is not None and any(isinstance(volume.annotations["label"], Mapping) for volume in volumes):
        raise UserError("--ignore is a value of label maps, and the references are masks of structures: leave it out")
    if ignore is None:
        found = (ignored_value(folder) for folder in (dataset_dir, dataset_dir.parent))
        ignore = next((value for value in found if value is not None), None)
    if ignore is None:
        return None
    taken = {number for value in classes.values() for number in values_of(value)}
    if isinstance(ignore, bool) or not isinstance(ignore, int) or not 0 < ignore < 65536 or ignore in taken:
        raise UserError(f"--ignore {ignore!r} does not fit: give a whole number that no class has, such as 255")
    return ignore


def tolerances(tolerance_mm: float | Mapping[str, float], classes: Classes) -> dict[str, float]:
    """Each class's tolerance in mm, from one for all or from one each; a UserError says what does not fit."""
    remedy = "give mm, such as 2, or one for each class, such as {liver: 3, tumour: 1}"
    given = dict(tolerance_mm) if isinstance(tolerance_mm, Mapping) else dict.fromkeys(classes, tolerance_mm)
    if set(given) != set(classes):
        raise UserError(f"--tolerance_mm {tolerance_mm} does not name the classes {', '.join(classes)}: {remedy}")
    for value in given.values():
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
            raise UserError(f"--tolerance_mm {tolerance_mm} does not fit: {remedy}")
    return {name: float(given[name]) for name in classes}


def same_names(given: Classes | None, classes: Classes, predicted: Classes) -> dict[str, int | Sequence[int]]:
    """The values in the predictions of the evaluated classes: the given ones, else those that the predictions tell.

    Where the predictions name none of the classes, their values are those of the reference, and the log says so. So
    are those of a region that they do not name, where they have all of its values and agree on the other classes.

    Raises:
        UserError: if the names do not fit, or the predictions name some of the classes alone.
    """
    if given:
        check_evaluated(given, "--prediction_classes")
        if set(given) != set(classes):
            wanted = ", ".join(classes)
            raise UserError(f"--prediction_classes names {', '.join(given)}: name the classes, which are {wanted}")
        return {name: given[name] for name in classes}
    told = {**_regions(classes, predicted), **predicted}
    lacking = [name for name in classes if name not in told]
    if not lacking:
        return {name: told[name] for name in classes}
    if len(lacking) < len(classes):
        raise UserError(
            f"--classes has {lacking[0]!r}, and the predictions have {', '.join(predicted)} alone: leave it out, or "
            f"give --prediction_classes with the values in the predictions, such as {{{lacking[0]}: 1}}"
        )
    if predicted:
        names = ", ".join(predicted)
        logger.warning("the predictions name other classes, %s: their values are taken to be those of --classes", names)
    return dict(classes)


def _regions(classes: Classes, predicted: Classes) -> dict[str, int | Sequence[int]]:
    """The regions that predictions do not name, but whose values they have; none where a class has another value."""
    if any(set(values_of(classes[name])) != set(values_of(predicted[name])) for name in classes if name in predicted):
        return {}
    known = {number for value in predicted.values() for number in values_of(value)}
    regions = {name: value for name, value in classes.items() if not isinstance(value, int)}
    return {name: value for name, value in regions.items() if known.issuperset(value)}


def pick_evaluated(
    classes: Classes, predicted: Classes, dataset_dir: Path, predictions: Path, volumes: Sequence[FoundVolume]
) -> Classes:
    """The classes that are given, that were predicted, or that a json or the names of the masks say."""
    if classes:
        return classes
    # of a folder such as labelsTr the json is in the one above
    listed = pick_classes({}, dataset_dir, regions=True) or pick_classes({}, dataset_dir.parent, regions=True)
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
    numbered = {name: number for number, name in enumerate(structures, start=1)}
    found = listed or pick_classes({}, predictions, regions=True) or numbered
    if not found:
        raise UserError(
            f"--classes is missing and neither {dataset_dir} nor {predictions} has a json that names them: give "
            "--classes, such as {liver: 1}"
        )
    return found


def predicted_classes(predictions: Path) -> Classes:
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
        return pick_classes({}, predictions, regions=True)
    except UserError:  # it is no json: the classes are told in another way, or that is said
        return {}
