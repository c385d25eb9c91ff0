# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""Deep supervision of a network that stacks its outputs, as MONAI's DynUNet does."""

from __future__ import annotations

from collections.abc import Sequence

from monai.losses import DeepSupervisionLoss
from torch import Tensor

__all__ = ["StackedSupervisionLoss"]


class StackedSupervisionLoss(DeepSupervisionLoss):
    """MONAI's `DeepSupervisionLoss`, which takes a list of outputs, for outputs stacked ``[B, n, C, D, H, W]``."""

    def forward(self, input: Tensor | Sequence[Tensor], target: Tensor) -> Tensor:  # noqa: A002 - the base class's name
        """The weighted sum, or the plain loss of a single output ``[B, C, D, H, W]``.

        Args:
            input: outputs.
            target: ``[B, 1, D, H, W]``.
        """
        is_stack = isinstance(input, Tensor) and input.ndim == target.ndim + 1
        total: Tensor = super().forward(input.unbind(1) if is_stack else input, target)  # type: ignore[union-attr]
        return total
