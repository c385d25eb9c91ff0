# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""Is the encoder learning anatomy? Measured in each validation, beside what position alone and chance would give."""

from __future__ import annotations

import copy
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
from ignite.engine import Engine, Events
from monai.utils.enums import CommonKeys
from torch import Tensor, nn

from bundle.networks import Encoder, PretrainingNetwork, average_at, find_pairs
from bundle.runs.distributed import gather, is_main_rank, unwrap
from bundle.sparse import CellLayout, SparseVolume

__all__ = ["RepresentationHealth", "SiteFeatures", "effective_rank", "feature_deviation", "retrieval", "uniformity"]

logger = logging.getLogger(__name__)

_SITES = 128  # per crop, at most
_RIDGE = 1e-2  # of the mean eigenvalue: what keeps the linear map finite with more channels than sites


@dataclass
class SiteFeatures:
    """Features of drawn sites of one crop, on the CPU in float64.

    Attributes:
        fine: ``[N, C]``, the last but one depth, averaged over the coarsest sites.
        coarse: ``[N, C']``, the coarsest depth.
        place: ``[N, P]``, what position alone tells: the site's number as one-hot, and its coordinates' powers.
        volume: the number of the volume.
    """

    fine: Tensor
    coarse: Tensor
    place: Tensor
    volume: int


class RepresentationHealth:
    """Adds the health of the encoder's features to the figures of every validation, and warns in plain words.

    For each held-out crop's visible sites: can the coarsest depth's feature be found among all of that crop from the
    finer depth's at the same place? A linear map between them is fitted on some of the held-out volumes and tried on
    the others, so nothing is learned for it but that map. Figures, all named "validation/...":

    - health_top1: how often the right site is found;
    - health_top1_position: the same from the site's position alone;
    - health_top1_untrained: the same with the encoder as it was before training;
    - health_top1_chance: the same by guessing;
    - health_effective_rank: directions that the coarsest features use (Roy & Vetterli 2007);
    - health_deviation: of the normalised features per channel, times the square root of the channels: 1 is all
      directions alike, 0 is collapse;
    - health_alignment, health_uniformity: of the pairs of features that heads made, where there are any (Wang & Isola
      2020, arXiv:2005.10242).

    Put it after the handler that collects the loss terms.

    Args:
        network: the pre-training network before training, wrapped or not: a copy of its encoder is the baseline.
    """

    def __init__(self, *, network: nn.Module) -> None:
        self.network = cast("PretrainingNetwork", unwrap(network))
        self._untrained = copy.deepcopy(self.network.encoder).eval().requires_grad_(False)
        self._trained_sites: list[SiteFeatures] = []
        self._untrained_sites: list[SiteFeatures] = []
        self._pairs: list[tuple[Tensor, Tensor]] = []

    def attach(self, engine: Engine) -> None:
        """Registers with the evaluator."""
        engine.add_event_handler(Events.EPOCH_STARTED, self._start)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._collect)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._finish)

    def _start(self, engine: Engine) -> None:  # noqa: ARG002 - the signature of a handler
        self._trained_sites, self._untrained_sites, self._pairs = [], [], []

    @torch.no_grad()
    def _collect(self, engine: Engine) -> None:
        output, target = engine.state.output[CommonKeys.PRED], engine.state.output[CommonKeys.LABEL]
        volume = SparseVolume.from_dense(target["image"], CellLayout(output["visible"]), self.network.executor)
        numbers = target["volume"].tolist()
        sites = volume.layout.draw_sites(_SITES * len(numbers), (1, 1, 1))
        self._untrained.to(volume.device)
        for encoder, kept in ((self.network.encoder, self._trained_sites), (self._untrained, self._untrained_sites)):
            kept.extend(_site_features(encoder, volume, sites, numbers))
        for pair in find_pairs(output["made"]):
            self._pairs.append((pair.query.double().cpu(), pair.key.double().cpu()))

    def _finish(self, engine: Engine) -> None:
        parts = gather((self._trained_sites, self._untrained_sites, self._pairs))
        trained, untrained, pairs = ([item for part in parts for item in part[i]] for i in range(3))
        figures = figures_of(trained, untrained, pairs)
        engine.state.metrics.update({f"validation/{name}": value for name, value in figures.items()})
        same = engine.state.metrics.get("validation/alignment_same", 0.0)
        for warning in warnings_of(figures, same) if is_main_rank() else []:
            logger.warning("%s", warning)


def figures_of(
    trained: Sequence[SiteFeatures], untrained: Sequence[SiteFeatures], pairs: Sequence[tuple[Tensor, Tensor]]
) -> dict[str, float]:
    """The health figures of features and of alignment pairs."""
    coarse = torch.cat([crop.coarse for crop in trained])
    figures = {
        "health_top1": retrieval([(c.fine, c.coarse, c.volume) for c in trained]),
        "health_top1_position": retrieval([(c.place, c.coarse, c.volume) for c in trained]),
        "health_top1_untrained": retrieval([(c.fine, c.coarse, c.volume) for c in untrained]),
        "health_top1_chance": sum(1.0 for _ in trained) / max(1, sum(len(c.coarse) for c in trained)),
        "health_effective_rank": effective_rank(coarse),
        "health_deviation": feature_deviation(coarse),
    }
    if pairs:
        query, key = ([nn.functional.normalize(side, dim=1) for side in sides] for sides in zip(*pairs))
        distances = torch.cat([(q - k).square().sum(1) for q, k in zip(query, key)])
        figures["health_alignment"] = distances.mean().item()
        figures["health_uniformity"] = sum(uniformity(k) for k in key) / len(key)
    return figures


def warnings_of(figures: dict[str, float], same: float) -> list[str]:
    """What is wrong with the features, in plain words."""
    found = []
    if same > 0.9:
        found.append(
            f"alignment: in {same:.0%} of the pairs both sides are the same vector, so its loss is low and nothing is "
            "learned from it: take the two sides from different levels, heads and views"
        )
    if figures["health_effective_rank"] < 2 or figures["health_deviation"] < 0.1:
        found.append(
            f"the features collapse: they use {figures['health_effective_rank']:.1f} directions and vary by "
            f"{figures['health_deviation']:.2f} of what they could: lower the alignment's weight or the learning rate"
        )
    baseline = max(figures["health_top1_position"], figures["health_top1_untrained"])
    if figures["health_top1"] < baseline:
        found.append(
            f"a place is found again in {figures['health_top1']:.0%} of the cases, no better than by its position "
            f"({figures['health_top1_position']:.0%}) or with the untrained encoder "
            f"({figures['health_top1_untrained']:.0%})"
        )
    return found


def _site_features(encoder: Encoder, volume: SparseVolume, sites: Tensor, numbers: Sequence[int]) -> list[SiteFeatures]:
    was_training = encoder.training
    encoder.eval()
    features = encoder(volume)
    encoder.train(was_training)
    fine = average_at(features[-2], features[-1], sites).double().cpu()
    coarse = features[-1].at(sites).double().cpu()
    place = _place(sites.cpu(), volume.layout.grid)
    rows = sites[:, 0].cpu()
    return [
        SiteFeatures(fine[rows == row], coarse[rows == row], place[rows == row], number)
        for row, number in enumerate(numbers)
        if (rows == row).any()
    ]


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
        The share of queries for which the most similar key (cosine) is their own; 0 if there is only one crop.
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
        x, y = torch.cat([q for q, _, _ in fit]), torch.cat([k for _, k, _ in fit])
        (x_mean, x_sd), (y_mean, y_sd) = _moments(x), _moments(y)
        weights = _ridge((x - x_mean) / x_sd, (y - y_mean) / y_sd)
        for query, key, _ in rest:
            predicted = nn.functional.normalize((query - x_mean) / x_sd @ weights, dim=1)
            wanted = nn.functional.normalize((key - y_mean) / y_sd, dim=1)
            hits += int(((predicted @ wanted.T).argmax(1) == torch.arange(len(key))).sum())
            tried += len(key)
    return hits / tried if tried else 0.0


def _moments(x: Tensor) -> tuple[Tensor, Tensor]:
    return x.mean(0), x.std(0, correction=0).clamp(min=1e-12)


def _ridge(x: Tensor, y: Tensor) -> Tensor:
    gram = x.T @ x
    strength = _RIDGE * gram.diagonal().mean() * max(1.0, x.shape[1] / len(x))
    strength = strength.clamp(min=1e-9)  # constant features
    return torch.linalg.solve(gram + strength * torch.eye(len(gram), dtype=x.dtype), x.T @ y)


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
