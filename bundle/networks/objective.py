# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""A pretext task: what the network predicts for it, and how the prediction is scored."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

from torch import Tensor, nn

__all__ = ["Objective", "ObjectiveSum"]


class Objective(ABC):
    """One task of pre-training. Reconstruction and alignment are objectives; a user's class can be a third.

    An objective has two halves. The network calls its `heads` on the encoder's features. The loss calls `loss` on what
    the heads made. The config names the object once, under `objectives`, and both halves get the same object:

        objectives#contrast: {_target_: my_objective.CellMean, levels: $@encoder.levels, weight: 0.1}

    The key, here `contrast`, is the objective's name. The network registers the heads as a submodule of that name, so
    optimizer, DistributedDataParallel and checkpoint see them. The log has the loss under that name.

    What the heads are called with: ``heads(views)``, one `View` for the crops, then one for each level of children.
    A view has the encoder's features of the visible cells, finest level first; the decoder's last features, which are
    dense and cover the hidden cells as well; spacing and place. A head that predicts at full resolution takes
    ``view.decoded``, or has another decoder, on ``view.features``. With `needs_whole` the call is
    ``heads(views, teacher)``: ``view.full`` then has the teacher's features of all cells that have data, and `teacher`
    is the moving average of these same heads, never trained. With `needs_decoded`
    every view has what the decoder makes at each of its levels, ``view.decodings``. With both, the teacher has a
    decoder as well, and the crops' view has what that one makes of the whole, ``view.full_decodings``.

    Heads that have nothing to say of these views return None or an empty list. Their loss is then left out.

    What `loss` is called with: what the heads made, and the target. The target has every tensor of the batch, so one
    that a transform in `train#preprocessing` adds arrives here too, but of the crops only. See `PretrainingLoss` for
    the keys that are always there.

    Args:
        heads: what makes the prediction, with all of the objective's parameters. None has no parameters: `loss` then
            gets the views themselves. None as well for reconstruction and alignment, whose heads are the network's
            arguments `decoder` and `alignment`.
        weight: of the loss in the sum.

    Attributes:
        needs_whole: whether the heads need the teacher. A network without one refuses the objective.
        needs_decoded: whether they need what the decoder makes at each of its levels; with `needs_whole` the
            teacher's, too.
        warm_up: from 0 to 1, a factor of `weight`; `WarmUpObjective` raises it in the first steps.

    Examples:
        >>> import torch
        >>> class Energy(Objective):  # features should be small
        ...     def loss(self, made, target):
        ...         return torch.stack([(view.features[-1] ** 2).to_dense().mean() for view in made]).mean(), {}
        >>> Energy(weight=0.01).weight
        0.01
    """

    needs_whole: bool = False
    needs_decoded: bool = False

    def __init__(self, *, heads: nn.Module | None = None, weight: float = 1.0) -> None:
        self.heads, self.weight, self.warm_up = heads, weight, 1.0

    @abstractmethod
    def loss(self, made: Any, target: dict[str, Any]) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of one batch, before weight and warm-up.

        Args:
            made: what the heads returned; without heads the views.
            target: as `PretrainingLoss` documents it.

        Returns:
            A scalar, and further metrics for the log: detached scalars, by names that no other objective uses. The loss
            itself is logged under the objective's name, unless a metric here has that name.
        """

    def share_step(self, targets: Sequence[dict[str, Any]], shares: Sequence[float]) -> list[dict[str, Any]]:  # noqa: ARG002 - for subclasses
        """What a part of a step must know of the whole step: added to the target that `loss` gets of each part.

        Called before the parts of a batch that is too large to be taken at once. The step's loss is the mean of the
        parts' losses, weighted by their shares. That is right for a mean over crops, and nothing need be known.

        Args:
            targets: of the parts, as `loss` gets them.
            shares: of the step's crops, that each part has.
        """
        return [{} for _ in targets]


class ObjectiveSum(Protocol):
    """The loss of a training as handlers see it; `bundle.losses.PretrainingLoss` is one."""

    @property
    def objectives(self) -> Mapping[str, Objective]:
        """By their names."""

    def __call__(self, output: Any, target: dict[str, Any]) -> Tensor:
        """The weighted sum of the objectives' losses."""

    def without_warm_up(self) -> AbstractContextManager[None]:
        """While it lasts, every objective has its full weight."""

    def on_this_process_alone(self) -> AbstractContextManager[None]:
        """While it lasts, nothing waits for the other processes."""
