# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""Cross-level alignment: one location's features at two levels agree, and differ from other locations'."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from bundle.errors import UserError
from bundle.networks import Pairs

__all__ = ["AlignmentLoss"]

_KINDS = ("infonce", "cosine")
_NEGATIVES = ("all", "other_volumes")


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
        negatives: `all` other places, or those of `other_volumes` only, which position alone cannot tell apart.
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
        self.kind, self.temperature, self.exclusion_mm = kind, temperature, exclusion_mm
        self.negatives, self.across_ranks = negatives, across_ranks

    def forward(self, pairs: Sequence[Pairs]) -> tuple[Tensor, dict[str, Tensor]]:
        """The mean over the pairs of levels.

        Returns:
            The loss and its terms: `alignment`; `alignment_top1`, how often the right place is the most similar;
            `alignment_chance`, the loss of guessing among those counted, ``ln N`` on average; `alignment_same`, the
            share of pairs whose two sides are the same vector, of which nothing can be learned.
        """
        found = [self._one(pair) for pair in pairs]
        names = ("alignment", "alignment_top1", "alignment_chance", "alignment_same")
        means = [torch.stack(values).mean() for values in zip(*found)]
        return means[0], {name: mean.detach() for name, mean in zip(names, means)}

    def _one(self, pair: Pairs) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        query, key = (F.normalize(side.float(), dim=1) for side in (pair.query, pair.key))
        positive = (query * key).sum(1)
        keys, volume, position, first = self._all_keys(pair, key)
        match = torch.arange(len(query), device=query.device) + first
        counted = self._counted(pair, volume, position, match)
        logits = (query @ keys.T / self.temperature).masked_fill(~counted, -torch.inf)
        loss = F.cross_entropy(logits, match) if self.kind == "infonce" else (2 - 2 * positive).mean()
        with torch.no_grad():
            top1 = (logits.argmax(1) == match).float().mean()
            chance = counted.sum(1).float().log().mean()
            same = (positive > 0.999).float().mean()
        return loss, top1, chance, same

    def _counted(self, pair: Pairs, volume: Tensor, position: Tensor, match: Tensor) -> Tensor:
        """Bool ``[N, keys]``: the positive, and the keys that are negatives."""
        same_volume = pair.volume[:, None] == volume
        if self.negatives == "other_volumes":
            counted = ~same_volume
        else:
            near = torch.cdist(pair.position.float(), position.float()) < self.exclusion_mm
            counted = ~(same_volume & near)
        return counted.scatter(1, match[:, None], True)

    def _all_keys(self, pair: Pairs, key: Tensor) -> tuple[Tensor, Tensor, Tensor, int]:
        """Keys, volumes and positions of all processes, and where this process's begin; others' carry no gradient."""
        several = dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
        if not (self.across_ranks and several and torch.is_grad_enabled()):
            return key, pair.volume, pair.position, 0
        world, rank = dist.get_world_size(), dist.get_rank()
        counts = _gathered(torch.tensor([len(key)], device=key.device), world)
        sizes = [int(count) for count in counts]
        rows = torch.cat([key.detach(), pair.volume[:, None].float(), pair.position.float()], 1)
        padded = F.pad(rows, (0, 0, 0, max(sizes) - len(rows)))  # every process may have drawn another number of sites
        parts = [part[:size] for part, size in zip(_gathered(padded, world), sizes)]
        keys = [part[:, : key.shape[1]] for part in parts]
        keys[rank] = key
        # a sample's number means another volume in another process
        volumes = [part[:, key.shape[1]].long() + (number - rank) * 2**32 for number, part in enumerate(parts)]
        positions = [part[:, key.shape[1] + 1 :] for part in parts]
        return torch.cat(keys), torch.cat(volumes), torch.cat(positions), sum(sizes[:rank])


def _gathered(x: Tensor, world: int) -> list[Tensor]:
    parts = [torch.empty_like(x) for _ in range(world)]
    dist.all_gather(parts, x.contiguous())
    return parts
