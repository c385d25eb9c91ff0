# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""Is the encoder learning anatomy? Measured in each validation, beside what position alone and chance would give."""

from __future__ import annotations

import copy
import logging
from collections.abc import Sequence
from typing import cast

import torch
from ignite.engine import Engine, Events
from monai.utils.enums import CommonKeys
from torch import Tensor, nn

from bundle.networks import PretrainingNetwork, SiteFeatures, find_pairs, read_site_features
from bundle.probing import effective_rank, feature_deviation, retrieval, uniformity
from bundle.runs.distributed import gather, is_main_rank, unwrap

__all__ = ["RepresentationHealth", "find_problems", "measure_health"]

logger = logging.getLogger(__name__)


class RepresentationHealth:
    """Adds the health of the encoder's features to the metrics of every validation, and warns in plain words.

    For each held-out crop's visible sites: can the coarsest depth's feature be found among all of that crop from the
    finer depth's at the same place? A linear map between them is fitted on some of the held-out volumes and tried on
    the others, so nothing is learned for it but that map. Metrics, all named "validation/...":

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
        encoders = (self.network.encoder, self._untrained.to(target["image"].device))
        trained, untrained = read_site_features(
            encoders,
            target["image"],
            output["visible"],
            self.network.executor,
            target["volume"].tolist(),
            target["draw"].tolist(),
        )
        self._trained_sites += trained
        self._untrained_sites += untrained
        for pair in find_pairs(output["made"]):
            self._pairs.append((pair.query.double().cpu(), pair.key.double().cpu()))

    def _finish(self, engine: Engine) -> None:
        parts = gather((self._trained_sites, self._untrained_sites, self._pairs))
        trained, untrained, pairs = ([item for part in parts for item in part[i]] for i in range(3))
        for crops in (trained, untrained):
            crops.sort(key=lambda crop: crop.draw)  # of one volume every other crop is held out, whatever the processes
        metrics = measure_health(trained, untrained, pairs)
        engine.state.metrics.update({f"validation/{name}": value for name, value in metrics.items()})
        same = engine.state.metrics.get("validation/alignment_same", 0.0)
        for warning in find_problems(metrics, same) if is_main_rank() else []:
            logger.warning("%s", warning)


def measure_health(
    trained: Sequence[SiteFeatures], untrained: Sequence[SiteFeatures], pairs: Sequence[tuple[Tensor, Tensor]]
) -> dict[str, float]:
    """The health metrics of features and of alignment pairs."""
    coarse = torch.cat([crop.coarse for crop in trained])
    metrics = {
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
        metrics["health_alignment"] = distances.mean().item()
        metrics["health_uniformity"] = sum(uniformity(k) for k in key) / len(key)
    return metrics


def find_problems(metrics: dict[str, float], same: float) -> list[str]:
    """What is wrong with the features, in plain words."""
    found = []
    if same > 0.9:
        found.append(
            f"alignment: in {same:.0%} of the pairs both sides are the same vector, so its loss is low and nothing is "
            "learned from it: take the two sides from different levels, heads and views"
        )
    if metrics["health_effective_rank"] < 2 or metrics["health_deviation"] < 0.1:
        what = "the alignment's weight or " if "health_alignment" in metrics else ""
        found.append(
            f"the features collapse: they use {metrics['health_effective_rank']:.1f} directions and vary by "
            f"{metrics['health_deviation']:.2f} of what they could: lower {what}the learning rate"
        )
    baseline = max(metrics["health_top1_position"], metrics["health_top1_untrained"])
    if metrics["health_top1"] < baseline:
        found.append(
            f"a place is found again in {metrics['health_top1']:.0%} of the cases, no better than by its position "
            f"({metrics['health_top1_position']:.0%}) or with the untrained encoder "
            f"({metrics['health_top1_untrained']:.0%})"
        )
    return found
