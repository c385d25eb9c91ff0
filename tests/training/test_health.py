# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""Health figures: known answers for features of known structure."""

from __future__ import annotations

import logging
from types import SimpleNamespace

import pytest
import torch
from ignite.engine import Engine

from bundle.networks import Decoder, EncoderDepthPairs, PretrainingNetwork, build_encoder
from bundle.training import RepresentationHealth
from bundle.training.health import effective_rank, feature_deviation, retrieval, uniformity, warnings_of


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


def test_warnings_say_what_is_wrong():
    good = {
        "health_top1": 0.6,
        "health_top1_position": 0.2,
        "health_top1_untrained": 0.5,
        "health_effective_rank": 20.0,
        "health_deviation": 0.8,
    }
    assert warnings_of(good, same=0.0) == []
    assert "same vector" in warnings_of(good, same=1.0)[0]
    assert "collapse" in warnings_of(good | {"health_effective_rank": 1.1}, same=0.0)[0]
    assert "no better than by its position" in warnings_of(good | {"health_top1": 0.4}, same=0.0)[0]


def network() -> PretrainingNetwork:
    torch.manual_seed(0)
    encoder = build_encoder("SegResEncoder", init_filters=4, blocks_down=(1, 1, 1), norm="batch")
    return PretrainingNetwork(
        encoder=encoder,
        decoder=Decoder(levels=encoder.levels, width=4, stride=2),
        alignment=EncoderDepthPairs(levels=encoder.levels, dim=8, samples=32),
    )


def validate(handler: RepresentationHealth, net: PretrainingNetwork) -> dict[str, float]:
    """Two batches of two volumes through MONAI's keys, as the evaluator leaves them."""
    net.eval()

    def iterate(engine: Engine, draw: int):
        generator = torch.Generator().manual_seed(draw)
        image = torch.randn(2, 1, 16, 16, 16, generator=generator)
        visible = torch.rand(2, 1, 4, 4, 4, generator=generator) > 0.4
        with torch.no_grad():
            out = net(image, visible=visible, hidden=~visible, spacing=torch.ones(2, 3))
        return {"pred": out, "label": {"image": image, "volume": torch.tensor([0, 1])}}

    engine = Engine(iterate)
    engine.logger.setLevel(logging.WARNING)
    handler.attach(engine)
    engine.run([0, 1])
    return engine.state.metrics


def test_an_untrained_network_is_its_own_baseline_and_stays_as_it_is():
    net = network()
    handler = RepresentationHealth(network=net)
    before = {key: value.clone() for key, value in net.state_dict().items()}
    figures = validate(handler, net)
    assert figures["validation/health_top1"] == figures["validation/health_top1_untrained"]
    assert figures["validation/health_top1_chance"] == pytest.approx(1 / 38, abs=0.01)
    assert {"validation/health_alignment", "validation/health_uniformity"} <= figures.keys()
    for key, value in net.state_dict().items():
        assert torch.equal(value, before[key]), key


def test_collapsed_features_are_reported(caplog: pytest.LogCaptureFixture):
    net = network()
    handler = RepresentationHealth(network=net)
    with torch.no_grad():
        for parameter in net.encoder.parameters():
            parameter.mul_(0.0)
    with caplog.at_level(logging.WARNING):
        figures = validate(handler, net)
    assert figures["validation/health_effective_rank"] == 0
    assert any("collapse" in record.getMessage() for record in caplog.records)


def test_the_network_may_be_without_heads():
    net = network()
    net.alignment = None
    figures = validate(RepresentationHealth(network=net), net)
    assert "validation/health_alignment" not in figures
    assert SimpleNamespace(**{k.split("/")[1]: v for k, v in figures.items()}).health_top1 >= 0
