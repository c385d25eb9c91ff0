# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
from __future__ import annotations

import logging

import pytest
import torch
from ignite.engine import Engine

from bundle.errors import UserError
from bundle.losses import AlignmentLoss, PretrainingLoss, ReconstructionLoss
from bundle.masking import AdaptiveBlocks, ChildLevel, MaskedBatch, MaskInMask, MaskSampler
from bundle.networks import Decoder, EncoderDepthPairs, Objective, PretrainingNetwork, build_encoder
from bundle.training import CostReport, UpdateTeacher, ValidationLoss, WarmUpObjective
from bundle.training.cost import cost_lines


def masking(levels: int) -> MaskInMask:
    sampler = MaskSampler(rule=AdaptiveBlocks(), cell=(4, 4, 4))
    return MaskInMask(masking=sampler, levels=[ChildLevel(masking=sampler, children=4, size=(8, 8, 8))] * levels)


def loss() -> PretrainingLoss:
    return PretrainingLoss(
        reconstruction=ReconstructionLoss(target="per_volume", visible_weight=0.0), alignment=AlignmentLoss()
    )


def test_passes_and_voxels_are_counted():
    lines = cost_lines(masking(2), (16, 16, 16))
    assert "level 2: 4 of 8x8x8 voxels per crop, 50%" in lines[1]
    assert "level 3: 16 of 8x8x8 voxels per crop, 200%" in lines[2]
    assert "21 forward passes and 350%" in lines[3]


def test_the_report_leaves_network_and_randomness_as_they_were(caplog: pytest.LogCaptureFixture):
    torch.manual_seed(0)
    encoder = build_encoder("SegResEncoder", init_filters=4, blocks_down=(1, 1, 1), norm="batch")
    net = PretrainingNetwork(encoder=encoder, decoder=Decoder(levels=encoder.levels, width=4, stride=2)).train()
    before = {key: value.clone() for key, value in net.state_dict().items()}
    state = torch.get_rng_state()
    report = CostReport(
        network=net,
        masked_batch=MaskedBatch(masking(1)),
        loss=loss(),
        crop_size=(16, 16, 16),
        batch_size=2,
        steps_per_epoch=30,
    )
    engine = Engine(lambda *_: None)
    report.attach(engine)
    engine.state.device = torch.device("cpu")
    with caplog.at_level(logging.INFO, logger="bundle"):
        report._report(engine)
    assert "5 forward passes" in caplog.text and "an epoch of 30 steps about" in caplog.text
    assert torch.equal(torch.get_rng_state(), state) and net.training
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())
    assert all(p.grad is None for p in net.parameters())


def test_an_objective_that_reads_more_of_the_batch_leaves_the_time_out(caplog: pytest.LogCaptureFixture):
    class Organ(Objective):
        def loss(self, made, target):  # noqa: ARG002 - the signature
            return target["organ"].sum(), {}

    encoder = build_encoder("SegResEncoder", init_filters=4, blocks_down=(1, 1, 1), norm="instance")
    objectives = {"organ": Organ()}
    report = CostReport(
        network=PretrainingNetwork(
            encoder=encoder, decoder=Decoder(levels=encoder.levels, width=4, stride=2), objectives=objectives
        ),
        masked_batch=MaskedBatch(masking(1)),
        loss=PretrainingLoss(
            reconstruction=ReconstructionLoss(target="per_volume", visible_weight=0.0),
            alignment=AlignmentLoss(),
            objectives=objectives,
        ),
        crop_size=(16, 16, 16),
        batch_size=2,
        steps_per_epoch=30,
    )
    engine = Engine(lambda *_: None)
    engine.state.device = torch.device("cpu")
    with caplog.at_level(logging.INFO, logger="bundle"):
        report._report(engine)
    assert "5 forward passes" in caplog.text and "an objective reads 'organ'" in caplog.text
    assert "an epoch of" not in caplog.text


def test_the_report_does_not_wait_for_other_processes():
    """Only the first process reports: its loss must not gather the others' keys meanwhile."""
    encoder = build_encoder("SegResEncoder", init_filters=4, blocks_down=(1, 1, 1), norm="instance")
    net = PretrainingNetwork(
        encoder=encoder,
        decoder=Decoder(levels=encoder.levels, width=4, stride=2),
        alignment=EncoderDepthPairs(levels=encoder.levels, dim=4, samples=8),
    )
    whole = loss()
    whole.alignment.across_ranks = True
    seen: list[bool] = []
    whole.alignment.register_forward_pre_hook(lambda module, _: seen.append(module.across_ranks))
    report = CostReport(
        network=net,
        masked_batch=MaskedBatch(masking(0)),
        loss=whole,
        crop_size=(16, 16, 16),
        batch_size=1,
        steps_per_epoch=1,
    )
    report._seconds(torch.device("cpu"))
    assert seen == [False] and whole.alignment.across_ranks


def test_the_alignments_weight_rises_and_stays():
    whole = loss()
    weights: list[float] = []
    engine = Engine(lambda *_: weights.append(whole.objectives["alignment"].warm_up))
    WarmUpObjective(loss=whole, steps=4, objective="alignment").attach(engine)
    engine.run(range(3), max_epochs=2)
    assert weights == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]


def test_validation_has_the_full_weight_while_training_still_raises_it():
    whole = loss()
    seen: list[float] = []
    whole.register_forward_pre_hook(lambda module, _: seen.append(module.objectives["alignment"].warm_up))
    whole.forward = lambda output, target: output  # noqa: ARG005 - its place in the sum is tested elsewhere
    whole.objectives["alignment"].warm_up = 0.25
    validator = Engine(lambda *_: {"pred": 0, "label": 0})
    validator.state.device = torch.device("cpu")
    ValidationLoss(loss_function=whole).attach(validator)
    validator.run(range(2))
    assert seen == [1.0, 1.0] and whole.objectives["alignment"].warm_up == 0.25


def test_the_weight_of_any_objective_rises_by_its_name():
    class Third(Objective):
        def loss(self, made, target):  # noqa: ARG002 - the signature
            return made, {}

    third = Third()
    whole = PretrainingLoss(
        reconstruction=ReconstructionLoss(target="per_volume", visible_weight=0.0),
        alignment=AlignmentLoss(),
        objectives={"third": third},
    )
    engine = Engine(lambda *_: None)
    WarmUpObjective(loss=whole, steps=4, objective="third").attach(engine)
    engine.run(range(2), max_epochs=1)
    assert third.warm_up == 0.5 and whole.objectives["alignment"].warm_up == 1.0
    with pytest.raises(UserError, match="'fourth': choose one of reconstruction, alignment, third"):
        WarmUpObjective(loss=whole, steps=4, objective="fourth")


def test_the_teacher_moves_once_per_step():
    class Network(torch.nn.Module):
        moved = 0

        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.ones(1))

        def update_teacher(self) -> None:
            self.moved += 1

    net = Network()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    UpdateTeacher(network=net, optimizer=optimizer).attach(Engine(lambda *_: None))
    for _ in range(3):
        optimizer.step()
    assert net.moved == 3
