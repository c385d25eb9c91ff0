# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""Cross-entropy of findings that are not known for every volume."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["MaskedBCEWithLogitsLoss"]


class MaskedBCEWithLogitsLoss(nn.Module):
    """Binary cross-entropy from logits, the mean over the entries that are known; 0 where none is.

    Args:
        pos_weight: by how much the loss of a positive entry of each finding counts more than that of a negative one;
            None is 1 for all.
    """

    def __init__(self, pos_weight: Sequence[float] | None = None) -> None:
        super().__init__()
        self.pos_weight = None if pos_weight is None else torch.tensor(list(pos_weight), dtype=torch.float32)

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The loss, a scalar.

        Args:
            logits: ``[B, findings]``.
            labels: ``[B, findings]``, 1, 0, or NaN where not known.
        """
        known = ~labels.isnan()
        weight = None if self.pos_weight is None else self.pos_weight.to(logits.device)
        # a NaN times 0 is NaN in the gradient, too, so it is replaced before
        terms = F.binary_cross_entropy_with_logits(
            logits.float(), labels.float().nan_to_num(0.0), pos_weight=weight, reduction="none"
        )
        return (terms * known).sum() / known.sum().clamp(min=1)
