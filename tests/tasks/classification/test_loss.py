# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""The loss of findings against the formula, with entries that are not known."""

from __future__ import annotations

import math

import pytest
import torch

from bundle.tasks.classification import MaskedBCEWithLogitsLoss

NAN = math.nan
LOGITS = [[0.3, -2.0, 5.0], [-0.7, 1.5, 0.0]]
LABELS = [[1.0, 0.0, NAN], [0.0, NAN, 1.0]]


@pytest.mark.parametrize("weights", [None, [2.0, 0.5, 3.0]])
def test_it_is_the_mean_cross_entropy_of_the_known_entries(weights):
    terms = []
    for logits, labels in zip(LOGITS, LABELS):
        for number, (logit, label) in enumerate(zip(logits, labels)):
            p = 1 / (1 + math.exp(-logit))
            weight = 1.0 if weights is None else weights[number]
            if not math.isnan(label):
                terms.append(-weight * math.log(p) if label == 1 else -math.log(1 - p))
    loss = MaskedBCEWithLogitsLoss(weights)(torch.tensor(LOGITS), torch.tensor(LABELS))
    assert loss.item() == pytest.approx(sum(terms) / len(terms), rel=1e-6)


def test_an_unknown_entry_has_neither_loss_nor_gradient():
    logits = torch.tensor(LOGITS, requires_grad=True)
    MaskedBCEWithLogitsLoss()(logits, torch.tensor(LABELS)).backward()
    unknown = torch.tensor(LABELS).isnan()
    assert logits.grad is not None and logits.grad.isfinite().all()
    assert (logits.grad[unknown] == 0).all() and (logits.grad[~unknown] != 0).all()


def test_a_batch_of_which_nothing_is_known_moves_nothing():
    logits = torch.tensor(LOGITS, requires_grad=True)
    loss = MaskedBCEWithLogitsLoss()(logits, torch.full((2, 3), NAN))
    loss.backward()
    assert loss.item() == 0 and (logits.grad == 0).all()
