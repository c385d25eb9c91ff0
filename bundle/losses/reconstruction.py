# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""Reconstruction of the hidden voxels, against a normalised target."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from bundle.cells import from_cells, to_cells
from bundle.errors import UserError
from bundle.losses.histogram import Histogram
from bundle.ranks import is_distributed, world_size

__all__ = ["ReconstructionLoss"]

_DISTANCES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "l1": partial(F.l1_loss, reduction="none"),
    "l2": partial(F.mse_loss, reduction="none"),
    "huber": partial(F.huber_loss, reduction="none"),
}
_TARGETS = ("none", "per_patch", "per_volume")


class ReconstructionLoss(nn.Module):
    """Mean distance between prediction and target over the hidden, valid voxels of the batch.

    Every voxel counts alike in the loss, those of all processes together, so that several train as one does. Were it a
    mean over crops, one that is mostly padding would weigh as much as a full one; networks trained so reconstructed
    worse (scripts/studies/method.md). What is logged, and the loss in a validation, is a mean over crops of each one's
    mean: so they do not depend on the batch size.

    The target is the image, shifted and scaled: ``(x - mean) / max(sd, floor)`` with mean and standard deviation over
    the valid voxels of each cell (`per_patch`, as in MAE and SparK), of the sample's whole crop (`per_volume`), or not
    at all (`none`). The statistics see hidden voxels too: they tell the loss, not the network, their overall level.
    With `l2` and a normalised target, the loss of predicting zero everywhere is at most about 1. Without the floor,
    the noise of nearly constant patches would be blown up to unit variance.

    The defaults are those of configs/train.yaml, but for the histogram, which needs a decoder with channels for it.

    Args:
        target: `none`, `per_patch` or `per_volume`.
        distance: `l1`, `l2` or `huber`.
        floor: smallest standard deviation to divide by, in units of the prepared image.
        visible_weight: of the same mean over the visible voxels, added to that over the hidden ones. 0 in masked
            autoencoders; above 0 it asks the finest levels of a full-resolution decoder for features where the network
            has seen the image, too, which is worth something if what it has seen was degraded first.
        histogram: the decoder predicts a distribution over intensities of the target, and its cross-entropy is the
            loss in place of the distance. What is logged stays the distance, that of the distribution's mean.

    Attributes:
        across_ranks: whether the voxels of the other processes count, which then must compute their losses, too.

    Raises:
        UserError: for an unknown target or distance, or a negative weight.
    """

    def __init__(
        self,
        *,
        target: str = "none",
        distance: str = "l2",
        floor: float = 0.05,
        visible_weight: float = 1.0,
        histogram: Histogram | None = None,
    ) -> None:
        super().__init__()
        if target not in _TARGETS:
            raise UserError(f"unknown reconstruction target {target!r}: choose one of {', '.join(_TARGETS)}")
        if distance not in _DISTANCES:
            raise UserError(f"unknown reconstruction distance {distance!r}: choose one of {', '.join(_DISTANCES)}")
        if visible_weight < 0:
            raise UserError(f"loss#reconstruction#visible_weight {visible_weight} is negative: give 0 or a weight")
        self.target, self.floor, self.distance = target, floor, _DISTANCES[distance]
        self.visible_weight, self.histogram = visible_weight, histogram
        self.across_ranks = True

    def forward(
        self,
        reconstruction: Tensor,
        image: Tensor,
        valid: Tensor,
        hidden: Tensor,
        foreground: Tensor,
        total: Tensor | None = None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss, and what to log beside it.

        Args:
            reconstruction: ``[B, C, D, H, W]`` in units of the normalised target, or the logits of histograms.
            image: ``[B, C, D, H, W]``.
            valid: bool ``[B, 1, D, H, W]``, False where padded.
            hidden: bool ``[B, 1, d, h, w]`` on cells.
            foreground: bool ``[B, 1, D, H, W]``, True in the body.
            total: ``[2]``, by how many voxels to divide the sums over those hidden and those visible, where the batch
                is a part of a step; see `count`. None counts those of this batch.

        Returns:
            The loss and its terms: on foreground and on air; in intensity units (`reconstruction_raw`); and the losses
            of two predictors that know nothing of anatomy, zero and the mean of the visible voxels.
        """
        cell = tuple(s // h for s, h in zip(image.shape[2:], hidden.shape[2:]))
        x = to_cells(image, cell)
        valid, foreground = to_cells(valid, cell), to_cells(foreground, cell)
        x = torch.where(valid, x, x.new_zeros(()))  # NaN outside the scan would reach the gradients, weight 0 or not
        hidden = hidden.flatten(2).transpose(1, 2)[..., None]  # [B, cells, 1, 1], as `to_cells` lays voxels out
        mean, sd = self._statistics(x, valid)
        target = (x - mean) / sd
        wanted = valid & hidden
        prediction = to_cells(reconstruction, cell)
        if self.histogram is not None:
            logits = self.histogram.logits(prediction, channels=x.shape[2])
            trained = self.histogram(logits, target)
            prediction = self.histogram.mean(logits.detach())
            error = self.distance(prediction, target)
        elif prediction.shape[2] == x.shape[2]:
            trained = error = self.distance(prediction, target)
        else:
            raise UserError(
                f"the decoder predicts {prediction.shape[2]} channels of an image with {x.shape[2]}: set "
                "decoder#channels, or loss#reconstruction#histogram if it should predict a distribution"
            )
        loss = self._mean_to_train(trained, wanted, None if total is None else total[0])
        with torch.no_grad():
            visible_mean = (_mean_where(x, valid & ~hidden, dims=(1, 3)) - mean) / sd
            zero = torch.zeros_like(x)
            terms = {
                "reconstruction": _average_crops(error, wanted),
                "reconstruction_foreground": _average_crops(error, wanted & foreground),
                "reconstruction_air": _average_crops(error, wanted & ~foreground),
                "reconstruction_raw": _average_crops(self.distance(prediction * sd + mean, x), wanted),
                "zero_predictor": _average_crops(self.distance(zero, target), wanted),
                "zero_predictor_raw": _average_crops(self.distance(zero, x), wanted),
                "mean_predictor": _average_crops(self.distance(visible_mean.expand_as(x), target), wanted),
            }
        if self.visible_weight:
            loss = loss + self.visible_weight * self._mean_to_train(
                trained, valid & ~hidden, None if total is None else total[1]
            )
            terms["reconstruction_visible"] = _average_crops(error, valid & ~hidden).detach()
        return loss, terms

    def restore(self, reconstruction: Tensor, image: Tensor, valid: Tensor, cell: Sequence[int]) -> Tensor:
        """The reconstruction in the image's own units, for looking at: ``[B, C, D, H, W]``."""
        mean, sd = self._statistics(to_cells(image, cell), to_cells(valid, cell))
        prediction = to_cells(reconstruction, cell)
        if self.histogram is not None:
            prediction = self.histogram.mean(self.histogram.logits(prediction, channels=image.shape[1]))
        return from_cells(prediction * sd + mean, image.shape[2:], cell)

    def count(self, parts: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
        """How many voxels are hidden, and how many visible, in all parts of a step: ``[2]``, as `forward` takes it.

        Of several processes it is the mean.

        Args:
            parts: `valid` and `hidden` of each, as for `forward`.
        """
        counts = []
        for valid, hidden in parts:
            cell = tuple(s // h for s, h in zip(valid.shape[2:], hidden.shape[2:]))
            per_cell = to_cells(valid, cell).sum((2, 3))
            masked = hidden.flatten(1).to(per_cell.device)
            counts.append(torch.stack([(per_cell * masked).sum(), (per_cell * ~masked).sum()]))
        return self._shared(torch.stack(counts).sum(0))

    def _mean_to_train(self, x: Tensor, where: Tensor, total: Tensor | None) -> Tensor:
        """Mean of ``[B, ...]`` where `where`, over the batches of all processes; without gradients over the crops."""
        if not torch.is_grad_enabled():
            return _average_crops(x, where)
        channels = x.numel() // where.numel()
        where = where.expand_as(x)
        count = self._shared(where.sum()) if total is None else (total * channels).to(x.dtype)
        # in a part of a step, the share of its crops times the count may be below 1
        return torch.where(where, x, x.new_zeros(())).sum() / (count.clamp(min=1) if total is None else count)

    def _shared(self, count: Tensor) -> Tensor:
        """The mean over the processes: DDP averages their gradients, whatever each one's count."""
        if self.across_ranks and is_distributed():
            dist.all_reduce(count)
            return count / world_size()
        return count

    def _statistics(self, x: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and floored standard deviation over the valid voxels of ``[B, cells, C, voxels]``."""
        if self.target == "none":
            return x.new_zeros(()), x.new_ones(())
        dims = (3,) if self.target == "per_patch" else (1, 3)
        mean = _mean_where(x, valid, dims)
        return mean, _mean_where((x - mean).square(), valid, dims).sqrt().clamp(min=self.floor)


def _average_crops(x: Tensor, where: Tensor) -> Tensor:
    """Mean over the crops of each one's mean of ``[B, ...]`` where `where`, of the crops where anything is."""
    means = _mean_where(x, where, tuple(range(1, x.ndim))).flatten()
    some = where.flatten(1).any(1)
    return means.sum() / some.sum().clamp(min=1)  # a crop where nothing is has the mean 0


def _mean_where(x: Tensor, where: Tensor, dims: tuple[int, ...]) -> Tensor:
    """Mean of `x` where `where`, and 0 where nothing is; over `dims`, which are kept."""
    where = where.expand_as(x)
    x = torch.where(where, x, x.new_zeros(()))  # not a product: NaN times zero would be NaN
    return x.sum(dims, keepdim=True) / where.sum(dims, keepdim=True).clamp(min=1)
