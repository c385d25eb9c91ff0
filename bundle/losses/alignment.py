# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""Cross-level alignment: one location's features at two levels agree, and differ from other locations'."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from bundle.cells import axis_numbers
from bundle.errors import UserError
from bundle.networks import BodyPlaces, KeyQueue, Pairs
from bundle.ranks import this_rank, world_size

__all__ = ["AlignmentLoss"]

_KINDS = ("infonce", "cosine")
_NEGATIVES = ("all", "other_volumes", "same_place")


class _Keys(NamedTuple):
    """Keys ``[M, C]``, of all processes or of this one, and which places they show."""

    key: Tensor
    volume: Tensor
    position: Tensor
    bodies: BodyPlaces | None
    first: int  # where this process's begin


class AlignmentLoss(nn.Module):
    """Agreement of L2-normalised features over pairs of one location.

    `infonce` (van den Oord et al. 2018, arXiv:1807.03748, equation 4): ``-log softmax(q_i k_j / temperature)`` at
    ``j = i``, averaged over i. The positive is the same place at the other level; the negatives are the keys of the
    other drawn places, without those that show nearly the same. `cosine`: ``2 - 2 q_i k_i`` (BYOL, arXiv:2006.07733),
    without negatives; only a teacher keeps it from making all features alike.

    Args:
        kind: `infonce` or `cosine`.
        temperature: divides the cosine similarities of `infonce`.
        exclusion_mm: places of the same volume nearer than this are no negatives: neighbours show one organ.
        negatives: `all` other places, or those of `other_volumes` only, which position alone cannot tell apart, or of
            those only the ones of the `same_place`, with the heads' `queue` also from earlier batches. A place is a
            share of the prepared volume, so it means the same in volumes that show the same part of the body only:
            those of another extent are no negatives. A place without any is not learned from.
        same_mm: as far apart two places of different volumes may be to be the same one.
        extent_ratio: as many times larger may the extent of one volume be on an axis, for places to be compared.
        across_ranks: takes the other processes' keys as negatives too. Only while gradients are computed: processes may
            validate unequal numbers of batches, and would wait for each other for ever.

    Raises:
        UserError: for an unknown kind or choice of negatives, or a temperature that is not above 0.
    """

    def __init__(
        self,
        *,
        kind: str = "infonce",
        temperature: float = 0.1,
        exclusion_mm: float = 0.0,
        negatives: str = "all",
        across_ranks: bool = False,
        same_mm: float = 20.0,
        extent_ratio: float = 1.25,
    ) -> None:
        super().__init__()
        if kind not in _KINDS:
            raise UserError(f"unknown alignment kind {kind!r}: choose one of {', '.join(_KINDS)}")
        if negatives not in _NEGATIVES:
            raise UserError(f"unknown alignment negatives {negatives!r}: choose one of {', '.join(_NEGATIVES)}")
        if temperature <= 0 or exclusion_mm < 0:
            raise UserError(
                f"alignment with temperature {temperature} and exclusion_mm {exclusion_mm} does not fit: give a "
                "temperature above 0 and an exclusion_mm of 0 or more"
            )
        if same_mm <= 0 or extent_ratio < 1:
            raise UserError(
                f"alignment with same_mm {same_mm} and extent_ratio {extent_ratio} does not fit: give same_mm above 0 "
                "and an extent_ratio of 1 or more"
            )
        self.same_mm, self.extent_ratio = same_mm, extent_ratio
        self.kind, self.temperature, self.exclusion_mm = kind, temperature, exclusion_mm
        self.negatives, self.across_ranks = negatives, across_ranks

    def forward(
        self, pairs: Sequence[Pairs], target: Mapping[str, Any] | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The mean over the pairs of levels.

        Args:
            pairs: of each two levels.
            target: for negatives of the `same_place`: `image`, `spacing`, `volume`, and the crops' `place`
                ``[B, 3, 2]``, the first and the last voxel of each axis as a share of the volume.

        Returns:
            The loss and its terms: `alignment`; `alignment_top1`, how often the right place is the most similar;
            `alignment_chance`, the loss of guessing among those counted, ``ln N`` on average; `alignment_same`, the
            share of pairs whose two sides are the same vector, of which nothing can be learned.
        """
        found = [self._one(pair, target or {}) for pair in pairs]
        names = ("alignment", "alignment_top1", "alignment_chance", "alignment_same")
        means = [torch.stack(values).mean() for values in zip(*found)]
        return means[0], {name: mean.detach() for name, mean in zip(names, means)}

    def _one(self, pair: Pairs, target: Mapping[str, Any]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        query, key = (F.normalize(side.float(), dim=1) for side in (pair.query, pair.key))
        positive = (query * key).sum(1)
        bodies = _find_bodies(pair, target) if self.negatives == "same_place" else None
        found = self._all_keys(pair, key, bodies)
        match = torch.arange(len(query), device=query.device) + found.first
        keys, counted = found.key, self._counted(pair, bodies, found, match)
        if bodies is not None and pair.queue is not None:
            keys = torch.cat([keys, pair.queue.keys.clone()])  # the queue moves on before the backward pass
            counted = torch.cat([counted, self._same_place(bodies, pair.queue.bodies)], 1)
            self._remember(pair.queue, found)
        logits = (query @ keys.T / self.temperature).masked_fill(~counted, -torch.inf)
        loss = F.cross_entropy(logits, match) if self.kind == "infonce" else (2 - 2 * positive).mean()
        with torch.no_grad():
            top1 = (logits.argmax(1) == match).float().mean()
            chance = counted.sum(1).float().log().mean()
            same = (positive > 0.999).float().mean()
        return loss, top1, chance, same

    def _counted(self, pair: Pairs, bodies: BodyPlaces | None, keys: _Keys, match: Tensor) -> Tensor:
        """Bool ``[N, keys]``: the positive, and the keys that are negatives."""
        same_volume = pair.volume[:, None] == keys.volume
        if bodies is not None and keys.bodies is not None:
            counted = self._same_place(bodies, keys.bodies)
        elif self.negatives == "other_volumes":
            counted = ~same_volume
        else:
            near = torch.cdist(pair.position.float(), keys.position.float()) < self.exclusion_mm
            counted = ~(same_volume & near)
        return counted.scatter(1, match[:, None], True)

    def _same_place(self, mine: BodyPlaces, others: BodyPlaces) -> Tensor:
        """Bool ``[N, M]``: places of other volumes of such an extent, not further away than `same_mm`."""
        other = (mine.volume[:, None] != others.volume) & (others.volume >= 0)
        ratio = (mine.extent[:, None] / others.extent).log().abs().amax(2)
        apart = ((mine.place[:, None] - others.place) * mine.extent[:, None]).norm(dim=2)
        return other & (ratio <= math.log(self.extent_ratio)) & (apart < self.same_mm)

    def _remember(self, queue: KeyQueue, found: _Keys) -> None:
        if queue.training and torch.is_grad_enabled() and found.bodies is not None:
            queue.push(found.key.detach(), found.bodies)

    def _all_keys(self, pair: Pairs, key: Tensor, bodies: BodyPlaces | None) -> _Keys:
        """This process's keys or, where asked for, those of all of them; the others' carry no gradient."""
        world, rank = world_size(), this_rank()
        if not (self.across_ranks and world > 1 and torch.is_grad_enabled()):
            return _Keys(key, pair.volume, pair.position, bodies, 0)
        counts = _gathered(torch.tensor([len(key)], device=key.device), world)
        sizes = [int(count) for count in counts]
        columns = [key.detach(), pair.volume[:, None].float(), pair.position.float()]
        if bodies is not None:
            columns += [bodies.place.float(), bodies.extent.float(), bodies.volume[:, None].float()]
        rows = torch.cat(columns, 1)
        padded = F.pad(rows, (0, 0, 0, max(sizes) - len(rows)))  # every process may have drawn another number of sites
        parts = [part[:size] for part, size in zip(_gathered(padded, world), sizes)]
        split = [part.split([column.shape[1] for column in columns], 1) for part in parts]
        keys = [found[0] for found in split]
        keys[rank] = key
        # a sample's number means another volume in another process
        volumes = [found[1][:, 0].long() + (number - rank) * 2**32 for number, found in enumerate(split)]
        everywhere = [torch.cat(column) for column in list(zip(*split))[2:]]
        if bodies is not None:
            bodies = BodyPlaces(everywhere[1], everywhere[2], everywhere[3][:, 0].long())
        return _Keys(torch.cat(keys), torch.cat(volumes), everywhere[0], bodies, sum(sizes[:rank]))


def _find_bodies(pair: Pairs, target: Mapping[str, Any]) -> BodyPlaces:
    """Where the places of a pair lie in their volumes.

    Raises:
        UserError: if the crops do not say where they lie.
    """
    if "place" not in target:
        raise UserError(
            "loss#alignment#negatives same_place needs the place of the crops: use configs/alignment_place.yaml"
        )
    first, last = target["place"].float()[pair.volume].unbind(2)
    spacing = target["spacing"].float()[pair.volume]
    steps = axis_numbers(spacing, target["image"].shape[2:]) - 1
    share = (pair.position.float() / spacing - 0.5) / steps
    return BodyPlaces(
        place=first + share * (last - first),
        extent=steps * spacing / (last - first),
        volume=target["volume"][pair.volume],
    )


def _gathered(x: Tensor, world: int) -> list[Tensor]:
    parts = [torch.empty_like(x) for _ in range(world)]
    dist.all_gather(parts, x.contiguous())
    return parts
