# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""What do frozen features know? Linear maps fitted to them, and measures of how they are spread."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from bundle.networks import Encoder, average_at
from bundle.sparse import CellLayout, SparseVolume

__all__ = [
    "LinearMap",
    "SiteFeatures",
    "effective_rank",
    "feature_deviation",
    "fit_ridge",
    "minimize",
    "read_site_features",
    "retrieval",
    "standardize",
    "uniformity",
]

_SITES = 128  # per crop, at most
_RIDGE = 1e-2  # of the mean eigenvalue: what keeps the linear map finite with more channels than sites


@dataclass(frozen=True)
class LinearMap:
    """The map ``x -> (x - mean) / deviation @ weights + offset``.

    Attributes:
        mean: ``[C]``, of the features.
        deviation: ``[C]``, of the features.
        weights: ``[C, K]``.
        offset: ``[K]``, the mean of the targets.
    """

    mean: Tensor
    deviation: Tensor
    weights: Tensor
    offset: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        """Features ``[N, C]`` to predictions ``[N, K]``."""
        return (x - self.mean) / self.deviation @ self.weights + self.offset


def fit_ridge(x: Tensor, y: Tensor, strength: float = _RIDGE) -> LinearMap:
    """Ridge regression of targets on standardised features, in closed form; the offset is not penalised.

    Args:
        x: features ``[N, C]``, better in float64.
        y: targets ``[N, K]``, in the type of `x`.
        strength: of the penalty, relative to the mean of the diagonal of the features' Gram matrix, which is N where no
            feature is constant.
    """
    standard, mean, deviation = standardize(x)
    offset = y.mean(0)
    gram = standard.T @ standard
    penalty = (strength * gram.diagonal().mean()).clamp(min=1e-9)  # constant features
    identity = torch.eye(len(gram), dtype=x.dtype, device=x.device)
    weights = torch.linalg.solve(gram + penalty * identity, standard.T @ (y - offset))
    return LinearMap(mean, deviation, weights, offset)


def standardize(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Features ``[N, C]`` with mean 0 and deviation 1 in each channel, and the mean and deviation they had, ``[C]``."""
    mean, deviation = x.mean(0), x.std(0, correction=0).clamp(min=1e-12)
    return (x - mean) / deviation, mean, deviation


def minimize(objective: Callable[[], Tensor], parameters: Iterable[Tensor], iterations: int = 50) -> None:
    """Minimises an objective by L-BFGS with a strong Wolfe line search.

    Args:
        objective: gives the value, a scalar, for the parameters as they are.
        parameters: leaves that require gradients; they are changed in place.
        iterations: at most.
    """
    optimizer = torch.optim.LBFGS(list(parameters), max_iter=iterations, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        value = objective()
        value.backward()
        return value

    optimizer.step(closure)


@dataclass
class SiteFeatures:
    """Features of drawn sites of one crop, on the CPU in float64.

    Attributes:
        fine: ``[N, C]``, the last but one depth, averaged over the coarsest sites.
        coarse: ``[N, C']``, the coarsest depth.
        place: ``[N, P]``, what position alone says: the site's number as one-hot, and its coordinates' powers.
        volume: the number of the volume.
    """

    fine: Tensor
    coarse: Tensor
    place: Tensor
    volume: int


def read_site_features(
    encoders: Sequence[Encoder], image: Tensor, visible: Tensor, executor: str, numbers: Sequence[int]
) -> list[list[SiteFeatures]]:
    """Features of the same drawn visible sites in several encoders: for each encoder one entry per crop.

    Args:
        encoders: on the image's device; left in the mode they are in.
        image: ``[B, C, D, H, W]``.
        visible: bool ``[B, 1, d, h, w]`` on cells.
        executor: of the sparse execution.
        numbers: of the volumes that the crops are from.
    """
    volume = SparseVolume.from_dense(image, CellLayout(visible), executor)
    sites = volume.layout.draw_sites(_SITES * len(numbers), (1, 1, 1))
    place, rows = _place(sites.cpu(), volume.layout.grid), sites[:, 0].cpu()
    found = []
    for encoder in encoders:
        was_training = encoder.training
        encoder.eval()
        features = encoder(volume)
        encoder.train(was_training)
        fine = average_at(features[-2], features[-1], sites).double().cpu()
        coarse = features[-1].at(sites).double().cpu()
        crops = [(rows == row, number) for row, number in enumerate(numbers)]
        found.append([SiteFeatures(fine[at], coarse[at], place[at], number) for at, number in crops if at.any()])
    return found


def _place(sites: Tensor, grid: Sequence[int]) -> Tensor:
    """``[N, P]``: one-hot of the site, and the powers of its coordinates up to the third."""
    d, h, w = grid
    number = (sites[:, 1] * h + sites[:, 2]) * w + sites[:, 3]
    one_hot = nn.functional.one_hot(number, d * h * w).double()
    x = (sites[:, 1:].double() + 0.5) / torch.tensor(grid, dtype=torch.float64) - 0.5
    return torch.cat([one_hot, x, x**2, x**3, x[:, :1] * x[:, 1:2], x[:, :1] * x[:, 2:], x[:, 1:2] * x[:, 2:]], 1)


def retrieval(crops: Sequence[tuple[Tensor, Tensor, int]]) -> float:
    """How often a linear map from query to key finds the right key among those of its crop.

    The map, a ridge regression on standardised features, is fitted on some volumes (or, of one volume, some crops) and
    tried on the others, in two folds.

    Args:
        crops: ``[N, C]`` queries, ``[N, C']`` keys, and the volume's number.

    Returns:
        The share of queries for which the most similar key (cosine) is the right one; 0 if there is only one crop.
    """
    volumes = sorted({volume for _, _, volume in crops})
    several = len(volumes) > 1
    fold = [volumes.index(volume) % 2 if several else i % 2 for i, (_, _, volume) in enumerate(crops)]
    hits = tried = 0
    for held_out in (0, 1):
        fit = [crop for crop, f in zip(crops, fold) if f != held_out]
        rest = [crop for crop, f in zip(crops, fold) if f == held_out]
        if not fit or not rest:
            continue
        x, (y, mean, deviation) = torch.cat([q for q, _, _ in fit]), standardize(torch.cat([k for _, k, _ in fit]))
        predict = fit_ridge(x, y, _RIDGE * max(1.0, x.shape[1] / len(x)))
        for query, key, _ in rest:
            predicted = nn.functional.normalize(predict(query), dim=1)
            wanted = nn.functional.normalize((key - mean) / deviation, dim=1)
            hits += int(((predicted @ wanted.T).argmax(1) == torch.arange(len(key))).sum())
            tried += len(key)
    return hits / tried if tried else 0.0


def effective_rank(x: Tensor) -> float:
    """``exp`` of the entropy of the centred features' normalised singular values (Roy & Vetterli 2007)."""
    values = torch.linalg.svdvals(x - x.mean(0))
    if values.sum() <= 1e-12 * x.abs().max().clamp(min=1e-300):
        return 0.0
    share = values / values.sum()
    return (-(share * share.clamp(min=1e-300).log()).sum()).exp().item()


def feature_deviation(x: Tensor) -> float:
    """Mean over channels of the standard deviation of L2-normalised rows, times the root of the channels."""
    return (nn.functional.normalize(x, dim=1).std(0, correction=0).mean() * x.shape[1] ** 0.5).item()


def uniformity(x: Tensor) -> float:
    """``log mean exp(-2 |a - b|^2)`` over pairs of different rows of unit length; 0 is collapse, lower is better."""
    if len(x) < 2:
        return 0.0
    return (-2 * torch.pdist(x).square()).exp().mean().log().item()
