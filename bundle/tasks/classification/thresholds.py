# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""The probability from which a finding counts as present, chosen on validation volumes."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from bundle.runs import RunFolder

__all__ = ["Thresholds", "youden_threshold"]

#: where nothing can be chosen
_DEFAULT = 0.5


def youden_threshold(probabilities: Sequence[float], labels: Sequence[float]) -> float | None:
    r"""The threshold with the highest index of Youden (1950), sensitivity + specificity - 1.

    It lies in the middle between the two neighbouring probabilities, so that it depends on no rounding. Of several with
    one index it is the one nearest to 0.5. A finding counts as present from the threshold up.

    Args:
        probabilities: of each volume.
        labels: 1, 0, or NaN where not known.

    Returns:
        None if the labels have one class only: then no threshold is better than another.

    Example:
        >>> from bundle.tasks.classification import youden_threshold
        >>> youden_threshold([0.1, 0.2, 0.6, 0.4], [0, 0, 1, 1])
        0.3
    """
    values, truth = np.asarray(probabilities, dtype=np.float64), np.asarray(labels, dtype=np.float64)
    values, truth = values[~np.isnan(truth)], truth[~np.isnan(truth)]
    if not (truth == 1).any() or not (truth == 0).any():
        return None
    ends = np.unique(values)
    cuts = np.concatenate([(ends[1:] + ends[:-1]) / 2, ends[:1] / 2, (ends[-1:] + 1) / 2])  # the last two: all, none
    found = values[None] >= cuts[:, None]
    index = found[:, truth == 1].mean(1) - found[:, truth == 0].mean(1)
    best = cuts[index >= index.max() - 1e-12]
    return round(float(best[np.abs(best - 0.5).argmin()]), 9)


class Thresholds:
    """Reads, from the table that `FindingsReport` writes of an epoch, the thresholds for `model.json`.

    Call it with the number of an epoch. It gives `thresholds`, one for each finding, and `threshold_rule`, in words. A
    finding of which validation knows one class only has 0.5.

    Args:
        run_folder: that holds the tables.
        findings: their names.
    """

    def __init__(self, *, run_folder: RunFolder, findings: Sequence[str]) -> None:
        self.run_folder, self.findings = run_folder, tuple(findings)

    def __call__(self, epoch: int) -> Mapping[str, Any]:
        table = self.run_folder.path / "predictions" / f"epoch_{epoch:04d}.csv"
        if not table.is_file():  # a run without validation
            chosen: dict[str, float | None] = dict.fromkeys(self.findings)
        else:
            with table.open(newline="", encoding="utf-8") as file:
                rows = list(csv.reader(file))[1:]
            columns = np.array([[float(cell or "nan") for cell in row[1:]] for row in rows]).T
            count = len(self.findings)
            chosen = {
                finding: youden_threshold(columns[number].tolist(), columns[count + number].tolist())
                for number, finding in enumerate(self.findings)
            }
        return {
            "thresholds": {finding: _DEFAULT if value is None else value for finding, value in chosen.items()},
            "threshold_rule": {
                finding: "0.5: validation does not know both classes"
                if value is None
                else f"highest Youden index of the validation volumes in epoch {epoch}"
                for finding, value in chosen.items()
            },
        }
