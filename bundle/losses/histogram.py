# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""Reconstruction as a distribution over intensities."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from bundle.errors import UserError

__all__ = ["Histogram"]


class Histogram(nn.Module):
    """Cross-entropy of a predicted distribution over equally spaced intensities, instead of a distance of one value.

    A network that regresses intensities needs no more in its last features than one direction along which they grow.
    One that says how probable each intensity is has to keep them apart, so that a linear layer can pick out a range in
    the middle, such as grey matter's; and where a hidden voxel may be one of two tissues it need not guess their mean
    (Imani and White, arXiv:1806.04613; Farebrother et al., arXiv:2403.03950).

    An intensity between two of the bins belongs to both, the nearer one more ("two-hot"), so that the distribution's
    mean is the intensity; one beyond the range belongs to the last bin there.

    Args:
        bins: how many; the decoder needs as many channels for each of the image's.
        low, high: intensities of the first and the last bin, in units of the target.

    Raises:
        UserError: for less than two bins, or an empty range.
    """

    centres: Tensor

    def __init__(self, *, bins: int = 32, low: float = -3.0, high: float = 3.0) -> None:
        super().__init__()
        if bins < 2 or low >= high:
            raise UserError(
                f"a histogram of {bins} bins from {low} to {high} cannot be: give at least 2 bins, and low below high"
            )
        self.bins, self.low, self.high = bins, low, high
        self.register_buffer("centres", torch.linspace(low, high, bins), persistent=False)

    def logits(self, prediction: Tensor, channels: int) -> Tensor:
        """``[B, cells, channels * bins, voxels]`` of a decoder to ``[B, cells, channels, bins, voxels]``."""
        if prediction.shape[2] != channels * self.bins:
            raise UserError(
                f"the decoder predicts {prediction.shape[2]} channels, and a histogram of {self.bins} bins of "
                f"{channels} image channels needs {channels * self.bins}: set decoder#channels"
            )
        return prediction.unflatten(2, (channels, self.bins))

    def mean(self, logits: Tensor) -> Tensor:
        """The distributions' means ``[B, cells, channels, voxels]``."""
        return torch.einsum("ncikv,k->nciv", logits.softmax(3), self.centres.to(logits))

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """Cross-entropy in nats of each voxel, ``[B, cells, channels, voxels]``, like the target."""
        place = (target.clamp(self.low, self.high) - self.low) * ((self.bins - 1) / (self.high - self.low))
        below = place.floor().clamp(max=self.bins - 2)
        share = place - below  # of the bin above
        index = below.long().unsqueeze(3)
        log_p = logits.log_softmax(3)
        at = torch.cat([log_p.gather(3, index), log_p.gather(3, index + 1)], 3)
        return -((1 - share) * at[:, :, :, 0] + share * at[:, :, :, 1])

    def merged(self, values: Tensor) -> int:
        """How many values ``[N]`` lie beyond an end and would differ by a bin or more, were there bins beyond.

        The values in the fullest of these bins are not counted: a background of one value loses nothing.
        """
        width = (self.high - self.low) / (self.bins - 1)
        count = 0
        for beyond in (self.low - values[values < self.low], values[values > self.high] - self.high):
            if len(beyond):
                count += len(beyond) - int((beyond / width).long().bincount().max())
        return count
