# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""Several networks, and mirror images, as one network."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import combinations

import torch
from torch import Tensor, nn

from bundle.errors import UserError

__all__ = ["LogMeanProbability", "pick_mirrors"]


class LogMeanProbability(nn.Module):
    r"""The logarithm of the mean probability of several networks, each shown an image and its mirror images.

    With networks :math:`f_k`, and sets of mirrored axes :math:`m` (their mirror is its own inverse), it is
    :math:`\log \frac{1}{KM} \sum_{k, m} m(\mathrm{softmax}(f_k(m(x))))`. The mean is taken in each window of a sliding
    window: no further copy of a volume's probabilities is needed, however many networks there are.

    The windows then average logarithms, and `bundle.tasks.segmentation.ToProbabilitiesd` makes probabilities of them.
    So one network without mirrors says what it does where its logits are averaged: in the validation of training, in an
    exported bundle, in MONAI Label.

    Args:
        networks: each gives logits ``(Batch, classes, ...)``; of several outputs the first counts.
        mirror_axes: spatial axes, from 0, that are mirrored, alone and together: 1 axis costs twice, 2 cost four times,
            3 eight times as much.

    Example:
        >>> import torch
        >>> from bundle.prediction import LogMeanProbability
        >>> network = LogMeanProbability([torch.nn.Conv3d(1, 3, 1), torch.nn.Conv3d(1, 3, 1)], mirror_axes=[0])
        >>> probability = network(torch.rand(2, 1, 8, 8, 8)).exp()
        >>> probability.shape, bool(torch.allclose(probability.sum(1), torch.ones(2, 8, 8, 8)))
        (torch.Size([2, 3, 8, 8, 8]), True)
    """

    def __init__(self, networks: Sequence[nn.Module], *, mirror_axes: Sequence[int] = ()) -> None:
        super().__init__()
        self.networks = nn.ModuleList(networks)
        self.mirrors = [axes for count in range(len(mirror_axes) + 1) for axes in combinations(mirror_axes, count)]

    def forward(self, x: Tensor) -> Tensor:
        """Float32 logarithms.

        Args:
            x: ``(Batch, in_channels, D, H, W)``.

        Returns:
            ``(Batch, classes, D, H, W)``.
        """
        total: Tensor | None = None
        for network in self.networks:
            for axes in self.mirrors:
                dims = [axis + 2 for axis in axes]
                output = network(x.flip(dims) if dims else x)
                logits = output if isinstance(output, Tensor) else output[0]
                found = logits.float().log_softmax(1)
                found = found.flip(dims) if dims else found
                total = found if total is None else torch.logaddexp(total, found)  # never the logarithm of 0
        assert total is not None
        return total - math.log(len(self.networks) * len(self.mirrors))


def pick_mirrors(mirrors: str | bool, mirror_axes: Sequence[int]) -> list[int]:
    """The axes to mirror in prediction.

    Args:
        mirrors: of `--mirrors`: "auto" or True for the axes of training, False for none.
        mirror_axes: on which training showed mirror images.

    Raises:
        UserError: for another value, and for True where training showed none.
    """
    if mirrors not in ("auto", True, False):
        raise UserError(f"--mirrors {mirrors!r} is not known: choose auto, True or False")
    if mirrors is True and not mirror_axes:
        raise UserError(
            "--mirrors True, but training showed no mirror images, so that what they predict means nothing: leave "
            "--mirrors at auto, or train with --mirror_axes"
        )
    return list(mirror_axes) if mirrors else []
