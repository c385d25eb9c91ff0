# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""Cross-level alignment: one location's features at two levels agree, and differ from other locations'."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bundle.networks import Pairs

__all__ = ["AlignmentLoss"]


class AlignmentLoss(nn.Module):
    """Spatial InfoNCE (van den Oord et al. 2018, arXiv:1807.03748, equation 4) over pairs of one location.

    For L2-normalised rows, ``-log softmax(q_i k_j / temperature)`` at ``j = i``, averaged over i: the positive is the
    same place at the other level, every other drawn place is a negative.

    Args:
        temperature: divides the cosine similarities.
    """

    def __init__(self, *, temperature: float = 0.1) -> None:
        super().__init__()
        self.temperature = temperature

    def forward(self, pairs: Sequence[Pairs]) -> tuple[Tensor, dict[str, Tensor]]:
        """The mean over the pairs of levels.

        Returns:
            The loss and its terms: `alignment`, `alignment_top1` (how often the right place is the most similar) and
            `alignment_chance` (the loss of guessing, ``ln N``).
        """
        losses, hits, chance = [], [], []
        for pair in pairs:
            query, key = (F.normalize(side.float(), dim=1) for side in (pair.query, pair.key))
            logits = query @ key.T / self.temperature
            same = torch.arange(len(logits), device=logits.device)
            losses.append(F.cross_entropy(logits, same))
            hits.append((logits.detach().argmax(1) == same).float().mean())
            chance.append(torch.tensor(float(len(logits)), device=logits.device).log())
        loss = torch.stack(losses).mean()
        terms = {
            "alignment": loss.detach(),
            "alignment_top1": torch.stack(hits).mean(),
            "alignment_chance": torch.stack(chance).mean(),
        }
        return loss, terms
