# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""The metrics of one case, class by class, on the grid of its reference."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from bundle.data import read_volume
from bundle.data.grids import Grid, is_same_grid
from bundle.errors import UserError, VolumeError
from bundle.evaluation.mask_metrics import mask_metrics, union_box, volume_metrics
from bundle.evaluation.written_labels import Classes, OtherGridError, WrittenLabels, describe_grid, read_labels

__all__ = ["COLUMNS", "EvaluatedCase", "LabelledCase", "evaluate_case"]

#: of cases.csv
COLUMNS = (
    "case", "class", "dice", "hausdorff95_mm", "surface_dice", "volume_ml", "reference_ml", "volume_error_ml",
    "volume_error_percent", "group", "note",
)  # fmt: skip


#: what is not to count is called so, as no class can be
_IGNORED = ""


@dataclass(frozen=True)
class LabelledCase:
    """A case to evaluate, not read yet.

    Args:
        name: in tables.
        group: cases of one person have one.
        image: the files of its image, for pictures.
        reference: the file of the reference, or the file of each structure.
        prediction: likewise; None if there is none.
    """

    name: str
    group: str
    image: tuple[str, ...]
    reference: str | Mapping[str, str]
    prediction: str | Mapping[str, str] | None


@dataclass(frozen=True)
class EvaluatedCase:
    """What was found of a case.

    Args:
        case: the case.
        rows: the values of each class, by the name of the column.
        resampled: whether the prediction was on another grid.
        others: values of the reference, and of the prediction, that no class has.
        problem: why there are no values; "" if there are.
    """

    case: LabelledCase
    rows: Sequence[Mapping[str, Any]] = ()
    resampled: bool = False
    others: tuple[Sequence[int], Sequence[int]] = ((), ())
    problem: str = ""

    @property
    def score(self) -> float:
        """The mean Dice of the classes that the case or its prediction has; NaN if there is none."""
        known = [row["dice"] for row in self.rows if math.isfinite(row.get("dice", math.nan))]
        return float(np.mean(known)) if known else math.nan


def evaluate_case(
    case: LabelledCase,
    classes: Classes,
    *,
    prediction_classes: Classes,
    tolerance_mm: Mapping[str, float],
    resample: bool = False,
    ignore: int | None = None,
) -> EvaluatedCase:
    """Reads both label maps of a case and compares them.

    Args:
        case: a prediction that is None counts as one in which nothing is labelled.
        classes: value in the reference by name, of a region its values.
        prediction_classes: likewise in the prediction.
        tolerance_mm: of the surface Dice, by class.
        resample: whether a prediction on another grid is resampled to the reference's.
        ignore: value of the reference's voxels that count in nothing, whatever is predicted there.

    Raises:
        VolumeError: if one of them cannot be read, or their grids differ.
    """
    ignored: Classes = {} if ignore is None else {_IGNORED: ignore}
    reference = read_labels(case.reference, {**classes, **ignored}, case.name)
    predicted = None
    if case.prediction is not None:
        try:
            predicted = read_labels(
                case.prediction, prediction_classes, case.name, like=reference.grid, resample=resample
            )
        except OtherGridError as error:
            raise _which_is_off(case, reference.grid, error) from error
    rows = [
        {"case": case.name, "class": name, **_compare(name, predicted, reference, tolerance_mm[name])}
        for name in classes
    ]
    if predicted is None:
        return EvaluatedCase(case, rows, others=(reference.others, ()))
    return EvaluatedCase(case, rows, predicted.resampled, (reference.others, predicted.others))


def _which_is_off(case: LabelledCase, reference: Grid, error: OtherGridError) -> VolumeError:
    """The error on two grids with which of them is not the scan's, where there is a scan."""
    try:
        image = read_volume(list(case.image), case.name, constant=True, stacked=True)
    except UserError:
        return error
    scan: Grid = tuple(image.shape[1:]), np.asarray(image.affine, dtype=np.float64)
    off = {"reference": reference, "prediction": error.grid}
    off = {name: grid for name, grid in off.items() if not is_same_grid(grid, scan)}
    if not off:  # each within a tenth of a voxel, and more apart from one another
        return error
    grids = "; ".join(f"the {name}: {describe_grid(grid)}" for name, grid in {**off, "scan": scan}.items())
    remedies = {
        "reference": "resample the reference to the scan, nearest neighbour",
        "prediction": "predict on the scan's own grid",
    }
    remedy = " and ".join(remedies[name] for name in off)
    return VolumeError(
        case.name,
        f"has a {' and a '.join(off)} that {'is' if len(off) == 1 else 'are'} not on the scan's grid: {grids}",
        f"{remedy}, or give --resample True",
    )


def _compare(
    name: str, predicted: WrittenLabels | None, reference: WrittenLabels, tolerance_mm: float
) -> dict[str, Any]:
    if name not in reference.masks:
        return {"note": "no reference mask"}
    if predicted is not None and name not in predicted.masks:
        return {"reference_ml": volume_metrics(0, reference.count(name), reference.grid[1])["reference_ml"],
                "note": "no predicted mask"}  # fmt: skip
    box = union_box(reference.boxes[name], predicted.boxes[name] if predicted else None)
    truth = reference.cut(name, box)
    mask = np.zeros_like(truth) if predicted is None else predicted.cut(name, box)
    if _IGNORED in reference.masks:
        mask &= ~reference.cut(_IGNORED, box)
    affine = reference.grid[1].copy()
    affine[:3, 3] += affine[:3, :3] @ [part.start for part in box]
    found: dict[str, Any] = mask_metrics(mask, truth, affine, tolerance_mm=tolerance_mm)
    counts = int(np.count_nonzero(mask)), int(np.count_nonzero(truth))
    notes = {(False, False): "in neither", (True, False): "not in the reference", (False, True): "missed"}
    note = notes.get((counts[0] > 0, counts[1] > 0), "")
    return {**found, **volume_metrics(*counts, affine), "note": note}
