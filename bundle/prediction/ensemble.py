# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""Several networks, and mirror images, as one network."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

import torch
from torch import Tensor, nn

from bundle.errors import UserError

__all__ = ["MeanProbability", "pick_mirrors"]


class MeanProbability(nn.Module):
    r"""The mean probability of several networks, each shown an image and its mirror images.

    With networks :math:`f_k`, sets of mirrored axes :math:`m` (their mirror is its own inverse), and the softmax or the
    sigmoid :math:`s`, it is :math:`\frac{1}{KM} \sum_{k, m} m(s(f_k(m(x))))`. The mean is taken in each window of a
    sliding window: no further copy of a volume's probabilities is needed, however many networks there are.

    Args:
        networks: each gives logits ``(Batch, classes, ...)``; of several outputs the first counts.
        mirror_axes: spatial axes, from 0, that are mirrored, alone and together: 1 axis costs twice, 2 cost four times,
            3 eight times as much.
        activation: "softmax" over the classes, or "sigmoid".

    Example:
        >>> import torch
        >>> from bundle.prediction import MeanProbability
        >>> network = MeanProbability([torch.nn.Conv3d(1, 3, 1), torch.nn.Conv3d(1, 3, 1)], mirror_axes=[0])
        >>> probability = network(torch.rand(2, 1, 8, 8, 8))
        >>> probability.shape, bool(torch.allclose(probability.sum(1), torch.ones(2, 8, 8, 8)))
        (torch.Size([2, 3, 8, 8, 8]), True)
    """

    def __init__(
        self, networks: Sequence[nn.Module], *, mirror_axes: Sequence[int] = (), activation: str = "softmax"
    ) -> None:
        super().__init__()
        self.networks = nn.ModuleList(networks)
        self.mirrors = [axes for count in range(len(mirror_axes) + 1) for axes in combinations(mirror_axes, count)]
        self.activate = {"softmax": lambda logits: logits.softmax(1), "sigmoid": torch.sigmoid}[activation]

    def forward(self, x: Tensor) -> Tensor:
        """Float32 probabilities.

        Args:
            x: ``(Batch, in_channels, D, H, W)``.

        Returns:
            Of the networks' shape; mirrored back where it is spatial.
        """
        total: Tensor | None = None
        for network in self.networks:
            for axes in self.mirrors:
                dims = [axis + 2 for axis in axes]
                output = network(x.flip(dims) if dims else x)
                logits = output if isinstance(output, Tensor) else output[0]
                probability = self.activate(logits.float())
                if dims and probability.ndim == x.ndim:
                    probability = probability.flip(dims)
                total = probability if total is None else total.add_(probability)
        assert total is not None
        return total.div_(len(self.networks) * len(self.mirrors))


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
