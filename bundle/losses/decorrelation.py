# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""Features that differ from channel to channel: an objective beside reconstruction."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from bundle.networks import Objective, View

__all__ = ["Decorrelation", "effective_dimensions"]


class Decorrelation(Objective):
    """Keeps the channels of every level from saying the same.

    Reconstruction is content with few different features, and pre-training with it makes them fewer: of 32 channels
    six were left. A network that starts from such features learns less from few labels than one that starts at random.

    The loss of a level is the logarithm of its channels over their `effective_dimensions`: 0 where no two channels
    are correlated, and ``log(channels)`` where all are the same. Reconstruction and a teacher's targets say nothing
    against that. (The covariance term of VICReg, Bardes et al. 2022, arXiv:2105.04906, made free of scale.) It covers
    the encoder's levels, at their visible sites, and the decoder's.

    In training the covariance is that of the crops of one forward pass together. In a validation, which must not depend
    on the batch size, it is that of each crop, and the loss and the dimensions are means over the crops.

    Args:
        weight: of the loss in the sum.

    Examples:
        >>> import torch
        >>> from bundle.networks import View
        >>> from bundle.sparse import SparseVolume
        >>> objective, visible = Decorrelation(weight=0.3), torch.ones(1, 1, 2, 2, 2, dtype=torch.bool)
        >>> same = torch.randn(1, 1, 4, 4, 4).expand(1, 8, 4, 4, 4)
        >>> levels, corner = [SparseVolume.from_dense(same, visible)], torch.zeros(1, 3)
        >>> view = View(levels, None, torch.ones(1, 3), torch.zeros(1), corner)
        >>> loss, terms = objective.loss([view], {})
        >>> round(loss.exp().item(), 3), round(terms["dimensions_level0"].item(), 3)
        (8.0, 1.0)
    """

    needs_decoded = True

    def __init__(self, *, weight: float = 0.5) -> None:
        super().__init__(weight=weight)

    def loss(self, made: Sequence[View], target: dict[str, Any]) -> tuple[Tensor, dict[str, Tensor]]:  # noqa: ARG002
        """The mean over the levels of all views.

        Returns:
            The loss, and the effective dimensions of each of the encoder's and of the decoder's levels in the crops.
        """
        losses, terms = [], {}
        for number, view in enumerate(made):
            normed = [F.instance_norm(level) for level in view.features]  # type: ignore[arg-type]  # is dispatched
            levels = [level.to_dense() for level in normed]  # absent sites are 0
            names = [f"dimensions_level{level}" for level in range(len(levels))]
            levels += [F.instance_norm(decoding) for decoding in view.decodings]
            names += [f"dimensions_decoder{level}" for level in range(len(view.decodings))]
            for name, level in zip(names, levels, strict=True):
                crops = [level] if torch.is_grad_enabled() else level.split(1)
                dimensions = torch.stack([effective_dimensions(crop) for crop in crops])
                losses.append((level.shape[1] / dimensions).log().mean())
                if number == 0:
                    terms[name] = dimensions.mean().detach()
        return torch.stack(losses).mean(), terms


def effective_dimensions(features: Tensor) -> Tensor:
    """The participation ratio of the features' covariance: how many dimensions they fill.

    ``trace(C)^2 / sum(C^2)``, between 1, where all channels are multiples of one, and the number of channels.

    Args:
        features: ``[B, C, D, H, W]``, with the mean 0 in every sample and channel.

    Returns:
        A scalar; 1 where all features are 0.

    Examples:
        >>> import torch
        >>> one = torch.tensor([1.0, -1.0, 1.0, -1.0]).reshape(1, 1, 4, 1, 1)
        >>> other = torch.tensor([1.0, 1.0, -1.0, -1.0]).reshape(1, 1, 4, 1, 1)
        >>> effective_dimensions(torch.cat([one, other, 3 * one], 1)).item()  # covariances: 1, 1, 9, and 3 twice
        1.1980197429656982
    """
    sites = features.flatten(2)
    sites = sites if sites.dtype == torch.float64 else sites.float()
    covariance = (sites @ sites.mT).sum(0) / (sites.shape[0] * sites.shape[2])
    return (covariance.trace() ** 2 + 1e-12) / (covariance.square().sum() + 1e-12)
