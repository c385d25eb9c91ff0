# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""Self-distillation of a decoder: a teacher that sees all says which prototype every place belongs to."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from bundle.errors import UserError
from bundle.losses.pretext_segmentation import on_grid
from bundle.networks import Objective, PlacePrototypes, PrototypeHeads
from bundle.ranks import is_distributed

__all__ = ["Distillation", "balance_assignment"]

_BALANCES = ("sinkhorn", "centre")


class Distillation(Objective):
    """Predicts the teacher's assignment to prototypes, for visible and for hidden places, at the decoder's levels.

    The teacher is the moving average of encoder, decoder and heads. It sees the crop whole and hardly changed, the
    student partly hidden and strongly changed. What the teacher's decoder makes of a place is compared with prototypes,
    and the student names the same ones: iBOT's masked tokens (Zhou et al., arXiv:2111.07832), here voxels of a U-Net's
    decoder, so that the levels which its skips go to are trained as well as the encoder.

    Nothing but the targets keeps all places from having one prototype. `sinkhorn` shares the batch out evenly over the
    prototypes in three iterations (SwAV, arXiv:2006.09882; in DINOv2, arXiv:2304.07193). `centre` takes the mean that
    the teacher's similarities had so far off them (DINO, arXiv:2104.14294), which suits batches of few crops less, as
    one body part does not have all tissues, and demands less. Places outside the body are left out: they would take
    prototypes.

    Args:
        channels: of what the decoder makes, finest level first: its `decoded_channels`.
        level_weights: of the decoder's levels in the mean, finest first; those beyond the last one are not used.
        prototypes: how many at each level.
        dim: channels of the projections.
        samples: places per crop and level, at most.
        balance: `sinkhorn` or `centre`.
        student_temperature: divides the student's similarities.
        teacher_temperature: divides the teacher's; below the student's, so that targets are sharper than predictions.
        centre_momentum: share of the centre that a step keeps.
        hidden_weight: of hidden places, where a visible one has `visible_weight`.
        visible_weight: of visible places.
        weight: of the loss in the sum.
        across_ranks: shares out, or centres, over all processes. Only while gradients are computed.

    Raises:
        UserError: for an unknown balance, a decoder with fewer levels than weights, or temperatures that do not fit.
    """

    needs_whole = True
    needs_decoded = True

    def __init__(
        self,
        *,
        channels: Sequence[int],
        level_weights: Sequence[float] = (1.0, 1.0, 1.0),
        prototypes: int = 128,
        dim: int = 64,
        samples: int = 4096,
        balance: str = "sinkhorn",
        student_temperature: float = 0.1,
        teacher_temperature: float = 0.05,
        centre_momentum: float = 0.9,
        hidden_weight: float = 1.0,
        visible_weight: float = 1.0,
        weight: float = 1.0,
        across_ranks: bool = True,
    ) -> None:
        if len(level_weights) > len(channels) or not sum(level_weights) > 0 or min(level_weights) < 0:
            raise UserError(
                f"level_weights {list(level_weights)} of the distillation do not fit: give at most {len(channels)}, "
                "one for each level of the decoder from the finest on, none below 0 and not all 0"
            )
        if balance not in _BALANCES:
            raise UserError(f"unknown balance {balance!r} of the distillation: choose one of {', '.join(_BALANCES)}")
        if not 0 < teacher_temperature <= student_temperature:
            raise UserError(
                f"teacher_temperature {teacher_temperature} and student_temperature {student_temperature} do not fit: "
                "give both above 0, the teacher's not above the student's"
            )
        heads = PrototypeHeads(channels=channels[: len(level_weights)], prototypes=prototypes, dim=dim, samples=samples)
        super().__init__(heads=heads, weight=weight)
        self.level_weights, self.balance, self.across_ranks = list(level_weights), balance, across_ranks
        self.student_temperature, self.teacher_temperature = student_temperature, teacher_temperature
        self.centre_momentum = centre_momentum
        self.hidden_weight, self.visible_weight = hidden_weight, visible_weight

    def loss(self, made: Sequence[PlacePrototypes], target: dict[str, Any]) -> tuple[Tensor, dict[str, Tensor]]:
        """The weighted mean over the levels of the cross-entropy between teacher's and student's assignment.

        Returns:
            The loss, and its terms, means over the levels: `distillation_agreement`, how often both name the same
            prototype, and `distillation_agreement_hidden`; `distillation_guess`, the same if the most frequent one were
            always named; `distillation_entropy` of the targets, from 0, sharp, to 1, uniform;
            `distillation_used`, how many prototypes are in use (the exponential of the mean target's entropy);
            `distillation_information`, what the target says of a place, from 0, nothing, to 1: 0 is collapse, into one
            prototype or into uniform targets.
        """
        assert self.heads is not None
        trains = torch.is_grad_enabled() and self.heads.training  # not while a step is only timed
        losses, terms = zip(*(self._level(level, target, trains=trains) for level in made))
        weighted = [weight * found for weight, found in zip(self.level_weights, losses, strict=True)]
        loss = torch.stack(weighted).sum() / sum(self.level_weights)
        return loss, {name: torch.stack([found[name] for found in terms]).mean() for name in terms[0]}

    def _level(
        self, made: PlacePrototypes, target: dict[str, Any], *, trains: bool
    ) -> tuple[Tensor, dict[str, Tensor]]:
        counted = _at(on_grid(target["valid"] & target["foreground"], made.grid), made.places)
        hidden = _at(F.interpolate(target["hidden"].float(), size=made.grid) > 0, made.places)
        share = self._assign(made, counted, trains=trains)
        weight = counted * torch.where(hidden, self.hidden_weight, self.visible_weight)
        predicted = (made.student / self.student_temperature).log_softmax(-1)
        each = -(share * predicted).sum(-1)
        loss = (each * weight).sum() / weight.sum().clamp(min=1e-6)
        with torch.no_grad():
            return loss, _measure(share, predicted, counted, hidden)

    @torch.no_grad()
    def _assign(self, made: PlacePrototypes, counted: Tensor, *, trains: bool) -> Tensor:
        """The teacher's assignment ``[B, N, K]``, which sums to 1; moves the centre on, in training."""
        # processes may validate unequal numbers of batches, and would wait for each other for ever
        together = self.across_ranks and trains
        if self.balance == "sinkhorn":
            return balance_assignment(made.teacher / self.teacher_temperature, counted, together=together)
        share = ((made.teacher - made.centre) / self.teacher_temperature).softmax(-1)
        if trains:
            sums = torch.cat([(made.teacher * counted[..., None]).sum((0, 1)), counted.sum()[None].to(made.teacher)])
            sums = _summed(sums, together)
            made.centre.lerp_((sums[:-1] / sums[-1].clamp(min=1)).to(made.centre), 1 - self.centre_momentum)
        return share


def balance_assignment(logits: Tensor, counted: Tensor, *, iterations: int = 3, together: bool = False) -> Tensor:
    """Shares places out over prototypes, evenly over all that count (Sinkhorn and Knopp; Cuturi, arXiv:1306.0895).

    Args:
        logits: ``[B, N, K]``, similarities over a temperature.
        counted: bool ``[B, N]``; the others get an assignment too, and do not weigh in.
        iterations: each gives first all prototypes, then each place the same sum.
        together: over the places of all processes, which must all call it.

    Returns:
        ``[B, N, K]``, which sums to 1 at each place.
    """
    share = logits.softmax(-1)
    for _ in range(iterations):
        total = _summed((share * counted[..., None]).sum((0, 1)), together)
        share = share / total.clamp(min=1e-12)
        share = share / share.sum(-1, keepdim=True).clamp(min=1e-30)
    return share


def _summed(x: Tensor, together: bool) -> Tensor:
    if together and is_distributed():
        dist.all_reduce(x)
    return x


def _at(voxels: Tensor, places: Tensor) -> Tensor:
    """``[B, 1, d, h, w]`` at places ``[B, N]``."""
    return voxels.flatten(1).gather(1, places)


def _measure(share: Tensor, predicted: Tensor, counted: Tensor, hidden: Tensor) -> dict[str, Tensor]:
    """The terms of one level."""
    count = counted.sum().clamp(min=1)
    named = share.argmax(-1)
    agreed = (named == predicted.argmax(-1)).to(share)
    mean = (share * counted[..., None]).sum((0, 1)) / count
    whole = _entropy(mean)
    each = (_entropy(share) * counted).sum() / count
    times = torch.zeros_like(mean).index_add_(0, named.flatten(), counted.flatten().to(mean))
    nats = math.log(share.shape[-1])
    return {
        "distillation_agreement": (agreed * counted).sum() / count,
        "distillation_agreement_hidden": (agreed * (counted & hidden)).sum() / (counted & hidden).sum().clamp(min=1),
        "distillation_guess": times.max() / count,
        "distillation_entropy": each / nats,
        "distillation_used": whole.exp(),
        "distillation_information": (whole - each) / nats,
    }


def _entropy(share: Tensor) -> Tensor:
    return -torch.special.xlogy(share, share).sum(-1)
