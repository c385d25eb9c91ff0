# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""The weighted sum of the objectives' losses."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from bundle.errors import UserError
from bundle.losses.alignment import AlignmentLoss
from bundle.losses.objectives import Alignment, Reconstruction
from bundle.losses.reconstruction import ReconstructionLoss
from bundle.networks import Objective, PretrainingOutput

__all__ = ["PretrainingLoss"]


class PretrainingLoss(nn.Module):
    """The sum of weight x warm-up x loss of every objective; writes every term into the output's `terms`.

    An objective is left out where the network has no heads for it, or where they made nothing.

    Args:
        reconstruction: of the hidden voxels.
        alignment: between adjacent levels.
        alignment_weight: of the alignment in the sum.
        level_weights: of the reconstruction of the crops, the children, and their children (0.1 each; MiM has 1).
        objectives: further pretext tasks by name, the same that the network has. None is left out.

    Attributes:
        objectives: all of them by name, "reconstruction" and "alignment" first.

    Raises:
        UserError: if a weight is negative, or a further objective has the name of one of the first two.
    """

    def __init__(
        self,
        *,
        reconstruction: ReconstructionLoss,
        alignment: AlignmentLoss,
        alignment_weight: float = 0.05,
        level_weights: Sequence[float] = (0.1, 0.1, 0.1),
        objectives: Mapping[str, Objective | None] | None = None,
    ) -> None:
        super().__init__()
        self.reconstruction, self.alignment = reconstruction, alignment
        self.objectives: dict[str, Objective] = {
            "reconstruction": Reconstruction(voxels=reconstruction, level_weights=level_weights),
            "alignment": Alignment(pairs=alignment, weight=alignment_weight),
        }
        for name, objective in (objectives or {}).items():
            if name in self.objectives:
                raise UserError(f"objectives#{name}: the loss has an objective of this name: choose another one")
            if objective is not None:
                self.objectives[name] = objective
        for name, objective in self.objectives.items():
            if objective.weight < 0:
                raise UserError(f"the weight {objective.weight} of the {name} is negative: give 0 or more")

    def forward(self, output: PretrainingOutput, target: dict[str, Any]) -> Tensor:
        """The loss of a network output.

        Args:
            output: of the pre-training network.
            target: `image` ``[B, C, D, H, W]``, and `clean` alike where the network was given a degraded one; bool
                ``[B, 1, D, H, W]`` `valid` and `foreground`; and `children`, the levels of children that the network
                was given, as `bundle.masking.LevelBatch`. Objectives get these, every further tensor of the batch, and
                bool ``[B, 1, d, h, w]`` `visible` and `hidden` on cells. `children` is empty where there are none.
        """
        visible, hidden, terms = output["visible"], output["hidden"], output["terms"]
        target = {"children": [], **target, "visible": visible, "hidden": hidden}
        losses = []
        for name, objective in self.objectives.items():
            if name in output["made"]:
                loss, found = objective.loss(output["made"][name], target)
                losses.append(objective.warm_up * objective.weight * loss)
                terms.update({name: loss.detach(), **found})
        terms["mask_ratio"] = hidden.sum() / (hidden | visible).sum()
        total: Tensor = sum(losses[1:], losses[0])
        terms["loss"] = total.detach()
        return total

    def share_step(self, targets: Sequence[dict[str, Any]], shares: Sequence[float]) -> list[dict[str, Any]]:
        """What each part of a step must know of the whole: to be added to its target.

        Args:
            targets: of the parts, with `visible` and `hidden`.
            shares: of the step's crops, that each part has.
        """
        targets = [{"children": [], **target} for target in targets]
        found: list[dict[str, Any]] = [{} for _ in targets]
        for objective in self.objectives.values():
            for known, more in zip(found, objective.share_step(targets, shares), strict=True):
                known.update(more)
        return found

    def restore(self, output: PretrainingOutput, target: dict[str, Any], level: int = 0) -> Tensor:
        """The reconstruction in the image's own units, ``[B, C, D, H, W]``.

        Args:
            output: of the pre-training network.
            target: as for `forward`.
            level: 0 for the crops, 1 and 2 for the levels of children.
        """
        if level > 0:
            children = target["children"][level - 1]
            image, valid, hidden = children.clean, children.valid, children.hidden
        else:
            image, valid, hidden = target.get("clean", target["image"]), target["valid"], output["hidden"]
        made = output["made"]["reconstruction"][level] if level > 0 else output["reconstruction"]
        cell = [s // h for s, h in zip(image.shape[2:], hidden.shape[2:])]
        return self.reconstruction.restore(made, image, valid, cell)

    @contextmanager
    def without_warm_up(self) -> Iterator[None]:
        """While it lasts, every objective has its full weight: so that sums of different epochs can be compared."""
        before = [objective.warm_up for objective in self.objectives.values()]
        for objective in self.objectives.values():
            objective.warm_up = 1.0
        try:
            yield
        finally:
            for objective, value in zip(self.objectives.values(), before):
                objective.warm_up = value

    @contextmanager
    def on_this_process_alone(self) -> Iterator[None]:
        """While it lasts, no part waits for the other processes: for one that measures something by itself.

        Parts that can wait say so by the attribute `across_ranks`.
        """
        parts: list[Any] = [*self.modules(), *self.objectives.values()]
        parts = [part for part in parts if hasattr(part, "across_ranks")]
        before = [part.across_ranks for part in parts]
        for part in parts:
            part.across_ranks = False
        try:
            yield
        finally:
            for part, value in zip(parts, before):
                part.across_ranks = value
