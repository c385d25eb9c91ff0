# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""ROC AUC and loss of findings that are not known for every volume."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from monai.handlers import IgniteMetricHandler
from monai.metrics import ROCAUCMetric, compute_roc_auc
from torch import Tensor

__all__ = ["FindingsROCAUC", "LossOfAllVolumes", "roc_auc"]


def roc_auc(scores: Tensor, labels: Tensor) -> Tensor:
    """MONAI's area under the ROC curve, over the known volumes of each finding.

    Args:
        scores: ``[volumes, findings]``; only their order counts.
        labels: ``[volumes, findings]``, 1, 0, or NaN where not known.

    Returns:
        float64 ``[findings]``, NaN for a finding with one class only.
    """
    areas = []
    for score, label in zip(scores.T, labels.T):
        known = ~label.isnan()
        has_both = label[known].unique().numel() == 2
        areas.append(float(compute_roc_auc(score[known], label[known])) if has_both else float("nan"))
    return torch.tensor(areas, dtype=torch.float64)


class _KnownROCAUC(ROCAUCMetric):
    """MONAI's metric, which gathers over processes, with `roc_auc` instead of NaN wherever a label is not known."""

    def aggregate(self, average: Any = None) -> Tensor:  # noqa: ARG002 - the signature of MONAI's
        return roc_auc(*self.get_buffer())


class FindingsROCAUC(IgniteMetricHandler):
    """MONAI's ROC AUC, the mean over the findings that have both classes; NaN if none has.

    Each finding's own is in `engine.state.metric_details`, ``[1, findings]``, for `PerClass`.

    Args:
        output_transform: from the engine's output to scores and labels, NaN where not known.
    """

    def __init__(self, output_transform: Callable[[Any], Any] = lambda output: output) -> None:
        super().__init__(metric_fn=_KnownROCAUC(), output_transform=output_transform)

    def compute(self) -> float:
        areas = self.metric_fn.aggregate()
        self._is_reduced = True
        assert self._engine is not None  # attach() sets it
        self._engine.state.metric_details[self._name] = areas[None]
        return float(areas.nanmean())


class _LossOfAll(ROCAUCMetric):
    """Keeps outputs and labels as MONAI's ROC AUC does, for a loss."""

    def __init__(self, loss: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.loss = loss

    def aggregate(self, average: Any = None) -> Tensor:  # noqa: ARG002 - the signature of MONAI's
        return self.loss(*self.get_buffer())


class LossOfAllVolumes(IgniteMetricHandler):
    """A loss over all validation volumes at once, so that each known entry counts alike.

    Args:
        loss: of outputs and labels.
        output_transform: from the engine's output to both.
    """

    def __init__(
        self, loss: Callable[[Tensor, Tensor], Tensor], output_transform: Callable[[Any], Any] = lambda output: output
    ) -> None:
        super().__init__(metric_fn=_LossOfAll(loss), output_transform=output_transform, save_details=False)
