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
from bundle.training.health import find_problems


def test_warnings_say_what_is_wrong():
    good = {
        "health_top1": 0.6,
        "health_top1_position": 0.2,
        "health_top1_untrained": 0.5,
        "health_effective_rank": 20.0,
        "health_deviation": 0.8,
    }
    assert find_problems(good, same=0.0) == []
    assert "same vector" in find_problems(good, same=1.0)[0]
    collapsed = good | {"health_effective_rank": 1.1}
    assert "collapse" in find_problems(collapsed, same=0.0)[0]
    assert "alignment" not in find_problems(collapsed, same=0.0)[0]
    assert "alignment" in find_problems(collapsed | {"health_alignment": 0.1}, same=0.0)[0]
    assert "no better than by its position" in find_problems(good | {"health_top1": 0.4}, same=0.0)[0]


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
        return {
            "pred": out,
            "label": {"image": image, "volume": torch.tensor([0, 1]), "draw": torch.tensor([2 * draw, 2 * draw + 1])},
        }

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


def test_of_one_volume_the_order_in_which_processes_hand_in_crops_does_not_matter():
    net = network()
    generator = torch.Generator().manual_seed(3)
    batches = [torch.randn(1, 1, 16, 16, 16, generator=generator) for _ in range(4)]
    visible = torch.rand(4, 1, 4, 4, 4, generator=generator) > 0.4

    def figures(order: list[int]) -> dict[str, float]:
        def iterate(engine: Engine, draw: int):
            seen = visible[draw : draw + 1]
            with torch.no_grad():
                out = net(batches[draw], visible=seen, hidden=~seen, spacing=torch.ones(1, 3))
            label = {"image": batches[draw], "volume": torch.tensor([0]), "draw": torch.tensor([draw])}
            return {"pred": out, "label": label}

        net.eval()
        engine = Engine(iterate)
        RepresentationHealth(network=net).attach(engine)
        engine.run(order)
        return {name: value for name, value in engine.state.metrics.items() if "top1" in name}

    assert figures([0, 1, 2, 3]) == figures([0, 2, 1, 3])
