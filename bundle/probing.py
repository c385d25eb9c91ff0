# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""What do frozen features know? Linear maps fitted to them, and measures of how they are spread."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

__all__ = [
    "LinearMap",
    "effective_rank",
    "feature_deviation",
    "fit_ridge",
    "minimize",
    "retrieval",
    "standardize",
    "uniformity",
]

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
