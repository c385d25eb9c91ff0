# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""bundle/probing.py: linear maps against other solvers, and measures on features whose answer is known."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.optimize import minimize as minimize_by_scipy
from torch.nn import functional as F

from bundle.networks import build_encoder, read_site_features
from bundle.probing import effective_rank, feature_deviation, fit_ridge, minimize, retrieval, standardize, uniformity


def features(rows: int = 60, channels: int = 5) -> tuple[torch.Tensor, torch.Tensor]:
    """Features of different scale, and three targets that hang on them."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(rows, channels, generator=generator, dtype=torch.float64)
    y = x @ torch.randn(channels, 3, generator=generator, dtype=torch.float64)
    y += torch.randn(rows, 3, generator=generator, dtype=torch.float64) + 4
    return x * torch.logspace(-2, 2, channels, dtype=torch.float64) + 3, y


@pytest.mark.parametrize("strength", [0.0, 0.03, 2.0])
@pytest.mark.parametrize("rows", [60, 4])
def test_ridge_is_the_least_squares_solution_of_the_system_with_the_penalty_as_rows(strength: float, rows: int):
    x, y = features(rows)
    if rows < x.shape[1]:
        strength = max(strength, 1e-3)  # without a penalty there is more than one solution
    standard = (x - x.mean(0)) / x.std(0, correction=0)
    penalty = (rows * strength) ** 0.5 * torch.eye(x.shape[1], dtype=x.dtype)
    targets = torch.cat([y - y.mean(0), torch.zeros(x.shape[1], 3, dtype=x.dtype)])
    weights = torch.linalg.lstsq(torch.cat([standard, penalty]), targets, driver="gelsd").solution
    found = fit_ridge(x, y, strength)
    torch.testing.assert_close(found.weights, weights, rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(found(x), standard @ weights + y.mean(0), rtol=1e-6, atol=1e-8)


def test_ridge_does_not_hang_on_the_scale_or_place_of_a_feature():
    x, y = features()
    scale, shift = torch.tensor([1e-3, 1, 50, -2, 7]).double(), torch.tensor([0, 9, -400, 1, 2]).double()
    torch.testing.assert_close(fit_ridge(x * scale + shift, y)(x * scale + shift), fit_ridge(x, y)(x))


def test_ridge_of_constant_features_predicts_the_mean():
    _, y = features()
    torch.testing.assert_close(
        fit_ridge(torch.ones(60, 5).double(), y)(torch.ones(2, 5).double()), y.mean(0).expand(2, 3)
    )


def test_standardized_features_have_mean_0_and_deviation_1_and_can_be_put_back():
    x, _ = features()
    standard, mean, deviation = standardize(x)
    torch.testing.assert_close(standard.mean(0), torch.zeros(5).double(), rtol=0, atol=1e-10)
    torch.testing.assert_close(standard.square().mean(0), torch.ones(5).double())
    torch.testing.assert_close(standard * deviation + mean, x)


def test_lbfgs_finds_the_logistic_regression_that_scipy_finds():
    x, y = features()
    x, labels = standardize(x)[0], y.argmax(1)
    weight = torch.zeros(3, 5, dtype=torch.float64, requires_grad=True)

    def objective() -> torch.Tensor:
        return F.cross_entropy(x @ weight.T, labels) + 0.1 * weight.square().sum()

    minimize(objective, [weight], iterations=100)

    def by_scipy(flat):
        logits = x.numpy() @ flat.reshape(3, 5).T
        losses = torch.tensor(logits).logsumexp(1).numpy() - logits[range(60), labels]
        return losses.mean() + 0.1 * (flat**2).sum()

    expected = minimize_by_scipy(by_scipy, np.zeros(15), tol=1e-12)
    torch.testing.assert_close(weight.detach(), torch.tensor(expected.x).reshape(3, 5), rtol=0, atol=1e-4)
    assert objective().item() == pytest.approx(expected.fun, abs=1e-8)


def test_more_iterations_are_not_made_than_asked_for():
    calls = 0
    weight = torch.tensor([5.0, -3.0], requires_grad=True)

    def objective() -> torch.Tensor:
        nonlocal calls
        calls += 1
        return (weight**4).sum()

    minimize(objective, [weight], iterations=1)
    few = calls
    minimize(objective, [weight], iterations=20)
    assert few < calls - few and weight.abs().max() < 1


def test_features_of_several_encoders_are_read_at_the_same_visible_sites():
    torch.manual_seed(0)
    one, other = (build_encoder("SegResEncoder", init_filters=4, blocks_down=(1, 1, 1), norm="batch") for _ in range(2))
    image, visible = torch.randn(2, 1, 16, 16, 16), torch.rand(2, 1, 4, 4, 4) > 0.4
    one.train()
    with torch.no_grad():
        first, second, again = read_site_features([one, other, one], image, visible, "cells", [7, 3], [20, 10])
    assert one.training and [(crop.volume, crop.draw) for crop in first] == [(7, 20), (3, 10)]
    for row, (a, b, c) in enumerate(zip(first, second, again, strict=True)):
        assert len(a.coarse) == int(visible[row].sum()) and a.fine.shape[1] * 2 == a.coarse.shape[1]
        assert torch.equal(a.place, b.place) and not torch.equal(a.coarse, b.coarse)
        assert torch.equal(a.coarse, c.coarse) and torch.equal(a.fine, c.fine)
        assert a.place[:, :64].sum(0).bool().tolist() == visible[row].flatten().tolist()


def crops(volumes: int, rows: int, make) -> list[tuple[torch.Tensor, torch.Tensor, int]]:
    generator = torch.Generator().manual_seed(0)
    return [(*make(rows, generator), volume) for volume in range(volumes)]


def random(rows: int, generator: torch.Generator) -> torch.Tensor:
    return torch.randn(rows, 16, dtype=torch.float64, generator=generator)


def test_a_linear_relation_is_found_on_volumes_that_it_was_not_fitted_on():
    mix = random(16, torch.Generator().manual_seed(5))

    def related(rows, generator):
        x = random(rows, generator)
        return x, x @ mix

    assert retrieval(crops(4, 50, related)) > 0.98


def test_unrelated_features_are_found_by_chance_only():
    share = retrieval(crops(6, 50, lambda rows, g: (random(rows, g), random(rows, g))))
    assert share < 0.06


def test_a_relation_of_one_volume_alone_does_not_count():
    """Query and key share a pattern that another volume has not: a map fitted there must not help here."""

    def own(rows, generator):
        x = random(rows, generator)
        return x, x @ random(16, generator)

    assert retrieval(crops(2, 50, own)) < 0.15


def test_crops_of_one_volume_are_split_and_a_single_crop_gives_nothing():
    queries = [q for q, _, _ in crops(4, 20, lambda r, g: (random(r, g), random(r, g)))]
    one = [(query, query, 7) for query in queries]
    assert retrieval(one) > 0.9
    assert retrieval(one[:1]) == 0


def test_effective_rank_of_known_spectra():
    x = torch.linalg.qr(torch.randn(64, 8, dtype=torch.float64))[0]
    x = x - x.mean(0)
    x = torch.linalg.qr(x)[0]
    assert effective_rank(x) == pytest.approx(8, rel=1e-6)
    assert effective_rank(x[:, :1] @ torch.randn(1, 8, dtype=torch.float64)) == pytest.approx(1, rel=1e-6)
    assert effective_rank(torch.ones(10, 4, dtype=torch.float64)) == 0


def test_deviation_is_one_for_all_directions_alike_and_zero_for_one():
    assert feature_deviation(torch.randn(5000, 32, dtype=torch.float64)) == pytest.approx(1, abs=0.02)
    assert feature_deviation(torch.ones(50, 32, dtype=torch.float64)) == pytest.approx(0, abs=1e-6)


def test_uniformity_is_its_formula():
    x = torch.nn.functional.normalize(torch.randn(7, 5, dtype=torch.float64), dim=1)
    total = [torch.exp(-2 * (x[i] - x[j]).square().sum()) for i in range(7) for j in range(i)]
    assert uniformity(x) == pytest.approx(torch.stack(total).mean().log().item())
    assert uniformity(x[:1].expand(4, -1)) == pytest.approx(0, abs=1e-9)
