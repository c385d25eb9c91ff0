# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""How often each finding is positive, negative and not known, on either side of the split."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import torch

from bundle.data import PreparedVolume
from bundle.errors import UserError

__all__ = ["FindingCounts"]

logger = logging.getLogger(__name__)

#: a finding that one volume in a thousand has would else outweigh all others
_LARGEST_WEIGHT = 100.0


class FindingCounts:
    """Counts the findings of prepared volumes, and says what cannot be learned or measured with them.

    Args:
        findings: their names.
        training: volumes whose files hold `label`, 1, 0 or NaN per finding.
        validation: likewise.
        balance: whether `pos_weight` makes the positives of each finding weigh as much as its negatives.

    Attributes:
        summary: by finding and part, the number of volumes that are positive, negative and unknown.
        pos_weight: for `MaskedBCEWithLogitsLoss`: negatives per positive, 100 at most; None without `balance`.

    Raises:
        UserError: if no finding has both positives and negatives in validation: there is no best epoch then; or if
            `balance` is a column, as pre-training takes one.
    """

    def __init__(
        self,
        *,
        findings: Sequence[str],
        training: Sequence[PreparedVolume],
        validation: Sequence[PreparedVolume],
        balance: bool = False,
    ) -> None:
        if not isinstance(balance, bool):
            raise UserError(f"--balance {balance} balances the draws of pre-training: give True or False here")
        counts = {"training": _count(training), "validation": _count(validation)}
        self.summary = {
            finding: {
                part: dict(zip(("positive", "negative", "unknown"), rows[number])) for part, rows in counts.items()
            }
            for number, finding in enumerate(findings)
        }
        for finding, parts in self.summary.items():
            for part, count in parts.items():
                text = f"{count['positive']} positive, {count['negative']} negative, {count['unknown']} unknown"
                logger.info("%s, %s: %s", finding, part, text)
                if not (count["positive"] and count["negative"]):
                    effect = "there is nothing to learn from" if part == "training" else "it has no ROC AUC"
                    logger.warning("finding %s has one class only in %s (%s): %s", finding, part, text, effect)
        if not any(p["validation"]["positive"] and p["validation"]["negative"] for p in self.summary.values()):
            raise UserError(
                f"none of {', '.join(findings)} has both 1 and 0 among the {len(validation)} validation volumes, so no "
                "epoch is the best: name training and validation in a column part, or raise --val_fraction"
            )
        self.pos_weight = [_weight(**self.summary[f]["training"]) for f in findings] if balance else None


def _count(volumes: Sequence[PreparedVolume]) -> list[list[int]]:
    """For each finding the number of volumes with 1, with 0 and with neither."""
    labels = torch.stack([volume.load(keys=["label"])["label"] for volume in volumes])
    return torch.stack([labels == 1, labels == 0, labels.isnan()]).sum(1).T.tolist()


def _weight(positive: int, negative: int, unknown: int) -> float:  # noqa: ARG001 - taken as it is counted
    return min(negative / positive, _LARGEST_WEIGHT) if positive and negative else 1.0
