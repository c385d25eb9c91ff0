# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""How well probabilities tell who has a finding, and whether they are the frequencies that they say."""

from __future__ import annotations

import math

import numpy as np
import torch
from monai.metrics import calibration_binning, compute_average_precision, compute_roc_auc

__all__ = ["DECISION_METRICS", "PROBABILITY_METRICS", "decision_metrics", "probability_metrics", "reliability_curve"]

#: the metrics of `probability_metrics`: whether higher is better
PROBABILITY_METRICS = {"auroc": True, "average_precision": True, "calibration_error": False, "brier": False}

#: the metrics of `decision_metrics`: whether higher is better
DECISION_METRICS = {"sensitivity": True, "specificity": True}


def decision_metrics(decisions: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """The share of those with a finding of whom it was decided so, and of those without; NaN where there are none.

    Args:
        decisions: ``[cases]``, 1, 0, or NaN where nothing was decided, which counts in neither.
        labels: ``[cases]``, 1 or 0.
    """
    shares = [decisions[(labels == label) & ~np.isnan(decisions)] == label for label in (1, 0)]
    return {
        name: float(share.mean()) if share.size else math.nan
        for name, share in zip(DECISION_METRICS, shares, strict=True)
    }


def probability_metrics(probabilities: np.ndarray, labels: np.ndarray, *, bins: int = 10) -> dict[str, float]:
    """MONAI's area under the ROC curve, average precision and expected calibration error, and the Brier score.

    Args:
        probabilities: ``[cases]``, 0 to 1.
        labels: ``[cases]``, 1 or 0.
        bins: of equal width, of the calibration error: the mean over the cases of the distance between mean
            probability and frequency in each case's bin.

    Returns:
        The values by the names of `PROBABILITY_METRICS`. The first two are NaN if all labels are one.

    Example:
        >>> import numpy as np
        >>> from bundle.evaluation import probability_metrics
        >>> found = probability_metrics(np.array([0.9, 0.6, 0.4, 0.2]), np.array([1, 0, 1, 0]))
        >>> found["auroc"], round(found["brier"], 4)
        (0.75, 0.1925)
    """
    if not len(labels):
        return dict.fromkeys(PROBABILITY_METRICS, math.nan)
    scores, truth = torch.from_numpy(probabilities.astype(np.float64)), torch.from_numpy(labels.astype(np.float64))
    has_both = 0 < labels.sum() < len(labels)
    mean, frequency, count = reliability_curve(probabilities, labels, bins=bins)
    return {
        "auroc": float(compute_roc_auc(scores, truth)) if has_both else math.nan,
        "average_precision": float(compute_average_precision(scores, truth)) if has_both else math.nan,
        "calibration_error": float((np.abs(mean - frequency) * count).sum() / count.sum()),
        "brier": float(np.mean((probabilities - labels) ** 2)),
    }


def reliability_curve(
    probabilities: np.ndarray, labels: np.ndarray, *, bins: int = 10
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean probability, frequency of the finding and number of cases in each bin that has some."""
    pair = (torch.from_numpy(np.asarray(values, dtype=np.float64))[None, None] for values in (probabilities, labels))
    mean, frequency, count = (values[0, 0].numpy().astype(np.float64) for values in calibration_binning(*pair, bins))
    held = count > 0
    return mean[held], frequency[held], count[held]
