# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""Probabilities of findings in new scans, by one classifier or several, and what is decided by them."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from itertools import combinations
from typing import Any

import torch
from monai.config import KeysCollection
from monai.transforms import MapTransform
from torch import Tensor, nn

from bundle.errors import UserError
from bundle.tasks.classification.classifier import EncoderClassifier
from bundle.tasks.classification.window_mean import WindowMean

__all__ = ["DecideFindingsd", "FindingProbabilities", "build_classifier", "finding_columns", "mean_thresholds"]


def build_classifier(content: Mapping[str, Any]) -> EncoderClassifier:
    """The network that the content of a `model.json` describes by `encoder`, `findings` and `pooling`.

    Raises:
        UserError: if it cannot be built.
    """
    return EncoderClassifier(content["encoder"], findings=len(content["findings"]), pooling=content["pooling"])


class FindingProbabilities(nn.Module):
    r"""The mean probability of several classifiers, each shown a scan and its mirror images.

    Of each, logits are averaged over the windows of a scan, as in validation, and become probabilities then.

    Args:
        networks: each gives logits ``[windows, findings]``.
        windows: takes a scan and a network, and gives the mean logits.
        mirror_axes: spatial axes, from 0, that are mirrored, alone and together.
    """

    def __init__(self, networks: Sequence[nn.Module], *, windows: WindowMean, mirror_axes: Sequence[int] = ()) -> None:
        super().__init__()
        self.networks, self.windows = nn.ModuleList(networks), windows
        self.mirrors = [axes for count in range(len(mirror_axes) + 1) for axes in combinations(mirror_axes, count)]

    def forward(self, image: Tensor) -> Tensor:
        """Float32 probabilities, ``[B, findings]``.

        Args:
            image: ``[B, 1, D, H, W]``, the whole scan.
        """
        scores = []
        for axes in self.mirrors:
            mirrored = image.flip([axis + 2 for axis in axes]) if axes else image
            scores += [self.windows(mirrored, network).float().sigmoid() for network in self.networks]
        return torch.stack(scores).mean(0)


def mean_thresholds(
    findings: Sequence[str], thresholds: Sequence[Mapping[str, float] | None], given: Mapping[str, float] | None = None
) -> dict[str, float]:
    """The threshold of each finding for the mean probability of several models: the mean of theirs.

    Args:
        findings: their names.
        thresholds: what each `model.json` says; one of version 0.1.0 says nothing, and counts as 0.5.
        given: of some findings, by the user.

    Raises:
        UserError: if a given one is of no finding, or is no number from 0 to 1.

    Example:
        >>> from bundle.tasks.classification import mean_thresholds
        >>> mean_thresholds(["stenosis", "clot"], [{"stenosis": 0.25, "clot": 0.5}, {"stenosis": 0.75, "clot": 0.5}])
        {'stenosis': 0.5, 'clot': 0.5}
    """
    given = given or {}
    for finding, value in given.items():
        if finding not in findings or not isinstance(value, (int, float)) or not 0 <= value <= 1:
            raise UserError(
                f"--thresholds {given} does not fit: give a number from 0 to 1 for findings of {', '.join(findings)}"
            )
    each = [{finding: float((told or {}).get(finding, 0.5)) for finding in findings} for told in thresholds]
    return {finding: given.get(finding, sum(one[finding] for one in each) / len(each)) for finding in findings}


def finding_columns(findings: Sequence[str]) -> list[str]:
    """The columns of `predictions.csv`: for each finding its probability, and the decision."""
    return [f"{finding}_{kind}" for finding in findings for kind in ("probability", "decision")]


class DecideFindingsd(MapTransform):
    """Puts probabilities, and 1 from the threshold up and else 0, under `row`, where `PredictionTables` finds them.

    Args:
        keys: of the probabilities, ``[findings]``.
        thresholds: by the name of each finding, in the order of the probabilities.
    """

    def __init__(self, keys: KeysCollection = "pred", *, thresholds: Mapping[str, float]) -> None:
        super().__init__(keys)
        self.thresholds = dict(thresholds)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        item = dict(data)
        probabilities = item[self.first_key(item)].double().tolist()
        row = dict(item.get("row", {}))
        for (finding, threshold), probability in zip(self.thresholds.items(), probabilities, strict=True):
            row[f"{finding}_probability"] = float(f"{probability:.9g}")
            row[f"{finding}_decision"] = int(probability >= threshold)
        return {**item, "row": row}
