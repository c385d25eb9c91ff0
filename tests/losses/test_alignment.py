# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
from __future__ import annotations

import math

import pytest
import torch

from bundle.losses import AlignmentLoss
from bundle.networks import Pairs


def pairs(query: torch.Tensor, key: torch.Tensor) -> Pairs:
    return Pairs(query, key, torch.zeros(len(query), dtype=torch.long), torch.zeros(len(query), 3))


def test_it_is_the_mean_negative_log_share_of_the_positive():
    torch.manual_seed(0)
    query, key = torch.randn(6, 4), torch.randn(6, 4)
    loss, _ = AlignmentLoss(temperature=0.3)([pairs(query, key)])
    total = 0.0
    for i in range(6):
        cosine = [(query[i] @ key[j] / query[i].norm() / key[j].norm()).item() for j in range(6)]
        total -= math.log(math.exp(cosine[i] / 0.3) / sum(math.exp(c / 0.3) for c in cosine))
    assert loss.item() == pytest.approx(total / 6, rel=1e-5)


def test_unrelated_pairs_cost_about_ln_n():
    torch.manual_seed(0)
    loss, terms = AlignmentLoss(temperature=1.0)([pairs(torch.randn(256, 128), torch.randn(256, 128))])
    assert loss.item() == pytest.approx(math.log(256), abs=0.05)
    assert terms["alignment_chance"].item() == pytest.approx(math.log(256)) and terms["alignment_top1"] < 0.05


def test_matching_pairs_cost_little_and_are_all_found():
    features = torch.eye(8)
    loss, terms = AlignmentLoss()([pairs(features, 3 * features)])
    assert loss < 1e-3 and terms["alignment_top1"] == 1


def test_large_features_stay_finite():
    features = torch.randn(16, 8) * 1e18
    loss, _ = AlignmentLoss(temperature=0.01)([pairs(features, features)])
    assert loss.isfinite()


def test_levels_are_averaged():
    torch.manual_seed(0)
    one, two = (pairs(torch.randn(n, 4), torch.randn(n, 4)) for n in (5, 9))
    loss = AlignmentLoss()
    assert loss([one, two])[0].item() == pytest.approx((loss([one])[0] + loss([two])[0]).item() / 2)
