# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
from __future__ import annotations

import math

import pytest
import torch

from bundle.losses import Decorrelation, effective_dimensions
from bundle.networks import Decoder, PretrainingNetwork, View, build_encoder
from bundle.sparse import SparseVolume


def view(features: torch.Tensor, visible: torch.Tensor) -> View:
    count, levels = len(features), [SparseVolume.from_dense(features, visible)]
    return View(levels, None, torch.ones(count, 3), torch.arange(count), torch.zeros(count, 3))


def test_dimensions_are_the_participation_ratio_of_the_eigenvalues():
    sites = torch.randn(2, 6, 4, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    sites[:, 3:] = 0.3 * sites[:, 3:] + sites[:, :3]  # the last three say nearly the same as the first ones
    sites = sites - sites.mean((2, 3, 4), keepdim=True)
    values = torch.linalg.eigvalsh(torch.cov(sites.transpose(0, 1).flatten(1), correction=0))
    assert effective_dimensions(sites).item() == pytest.approx((values.sum() ** 2 / values.square().sum()).item())


def test_the_loss_is_that_of_the_correlation_of_visible_sites():
    generator = torch.Generator().manual_seed(1)
    features = torch.randn(1, 5, 8, 8, 8, dtype=torch.float64, generator=generator)
    features[:, 4] = features[:, 0] + 3
    features[..., 4:] = torch.nan  # hidden: never read
    visible = torch.ones(1, 1, 2, 2, 2, dtype=torch.bool)
    visible[..., 1] = False
    loss, terms = Decorrelation().loss([view(features, visible)], {})
    correlation = torch.corrcoef(features[0, :, :, :, :4].flatten(1))
    half = 2.0  # a mean over all sites, of which half are absent: it scales all of the covariance alike
    dimensions = (correlation.trace() / half) ** 2 / (correlation / half).square().sum()
    assert terms["dimensions_level0"].item() == pytest.approx(dimensions.item(), rel=1e-4)  # the norm has an eps
    assert loss.item() == pytest.approx(math.log(5 / dimensions.item()), abs=1e-4)


def test_in_a_validation_it_is_the_mean_over_crops_so_that_the_batch_size_does_not_matter():
    generator = torch.Generator().manual_seed(2)
    features = torch.randn(3, 4, 8, 8, 8, dtype=torch.float64, generator=generator)
    features[1, 1:] = features[1, :1]  # one crop whose channels are all the same
    visible = torch.ones(3, 1, 2, 2, 2, dtype=torch.bool)
    objective = Decorrelation()
    with torch.no_grad():
        together, terms = objective.loss([view(features, visible)], {})
        alone = [objective.loss([view(features[i : i + 1], visible[i : i + 1])], {}) for i in range(3)]
    assert together.item() == pytest.approx(sum(loss.item() for loss, _ in alone) / 3, rel=1e-9)
    mean = sum(each["dimensions_level0"].item() for _, each in alone) / 3
    assert terms["dimensions_level0"].item() == pytest.approx(mean, rel=1e-9)
    assert objective.loss([view(features, visible)], {})[0].item() < together.item() - 0.01, "in training of all crops"


def test_dead_channels_and_no_features_are_finite():
    features = torch.zeros(1, 4, 4, 4, 4, requires_grad=True)
    loss, _ = Decorrelation().loss([view(features, torch.ones(1, 1, 1, 1, 1, dtype=torch.bool))], {})
    loss.backward()
    assert loss.isfinite() and features.grad is not None and features.grad.isfinite().all()


def test_training_with_it_fills_more_dimensions_than_training_without():
    torch.manual_seed(0)
    image = torch.nn.functional.avg_pool3d(torch.randn(2, 1, 20, 20, 20), 5, stride=1)  # smooth, as scans are
    hidden = torch.zeros(2, 1, 4, 4, 4, dtype=torch.bool)
    hidden[:, :, 0] = True
    found = {}
    for name, weight in (("with", 0.5), ("without", 0.0)):
        torch.manual_seed(1)
        encoder = build_encoder(
            "SegResEncoder", init_filters=8, blocks_down=(1, 1), norm=("instance", {"affine": True})
        )
        objective = Decorrelation(weight=weight)
        network = PretrainingNetwork(
            encoder=encoder,
            decoder=Decoder(levels=encoder.levels, width=8, stride=1),
            objectives={"decorrelation": objective},
        )
        optimizer = torch.optim.Adam(network.parameters(), lr=0.01)
        for _ in range(30):
            output = network(image, visible=~hidden, hidden=hidden, spacing=torch.ones(2, 3))
            spread, terms = objective.loss(output["made"]["decorrelation"], {})
            loss = (output["reconstruction"] - image).square().mean() + weight * spread
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        found[name] = {key: value.item() for key, value in terms.items()}
    assert all(found["with"][key] > 1.3 * found["without"][key] for key in found["with"]), found
