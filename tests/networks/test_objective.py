# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""Pretext tasks beside reconstruction and alignment: what their heads see, and how their losses add up."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from bundle.errors import UserError
from bundle.losses import Alignment, AlignmentLoss, PretrainingLoss, Reconstruction, ReconstructionLoss
from bundle.masking import AdaptiveBlocks, ChildLevel, MaskedBatch, MaskInMask, MaskSampler
from bundle.networks import Decoder, EncoderDepthPairs, Objective, PretrainingNetwork, SegResDecoder, build_encoder


class Recording(nn.Module):
    """Heads that remember what they were called with, and have one parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))
        self.calls: list[tuple[Any, ...]] = []

    def forward(self, views, *teacher):
        self.calls.append((views, *teacher))
        return self.scale * torch.stack([view.decoded.mean() for view in views])


class Mean(Objective):
    """The mean of what the heads made should be 3."""

    def loss(self, made, target):
        self.target = target
        return (made.mean() - 3).square(), {"mean_made": made.mean().detach()}


class Taught(Mean):
    needs_whole = True


def network(objectives: dict[str, Objective], *, alignment: bool = False, segres: bool = False, **options):
    torch.manual_seed(0)
    encoder = build_encoder("SegResEncoder", init_filters=4, blocks_down=(1, 1, 1), norm="instance")
    return PretrainingNetwork(
        encoder=encoder,
        decoder=SegResDecoder(encoder=encoder) if segres else Decoder(levels=encoder.levels, width=8, stride=2),
        alignment=EncoderDepthPairs(levels=encoder.levels, dim=8, samples=32) if alignment else None,
        objectives=objectives,
        **options,
    )


def batch(levels: int = 0, **more: torch.Tensor):
    torch.manual_seed(1)
    masking = MaskSampler(rule=AdaptiveBlocks(), cell=(4, 4, 4))
    image = torch.randn(2, 1, 16, 16, 16)
    crops = {
        "image": image,
        "valid": torch.ones_like(image, dtype=torch.bool),
        "foreground": image > 0,
        "draw": torch.arange(2),
        "spacing": torch.ones(2, 3),
        **more,
    }
    children = [ChildLevel(masking=masking, children=2, size=(8, 8, 8))] * levels
    return MaskedBatch(MaskInMask(masking=masking, levels=children))(crops)


def whole_loss(objectives: dict[str, Objective], **options) -> PretrainingLoss:
    return PretrainingLoss(
        reconstruction=ReconstructionLoss(target="per_volume", visible_weight=0.0),
        alignment=AlignmentLoss(),
        objectives=objectives,
        **{"level_weights": [1.0, 1.0, 1.0], **options},
    )


def test_the_loss_is_the_sum_of_weights_times_losses():
    objectives = {"one": Mean(heads=Recording(), weight=0.5), "two": Mean(heads=Recording(), weight=2.0)}
    net, (image, target, _, arguments) = network(objectives, alignment=True), batch(1)
    loss = whole_loss(objectives, alignment_weight=0.25, level_weights=[1.0, 0.75])
    objectives["two"].warm_up = 0.1
    with torch.no_grad():  # then the reconstruction's terms are its loss
        out = net(image, **arguments)
        total = loss(out, target)
    terms = out["terms"]
    made = out["made"]["one"].mean()
    assert terms["one"] == (made - 3) ** 2 and terms["mean_made"] == made
    expected = (
        terms["reconstruction"]
        + 0.75 * terms["reconstruction_level2"]
        + 0.25 * terms["alignment"]
        + 0.5 * terms["one"]
        + 0.1 * 2.0 * terms["two"]
    )
    assert total.item() == pytest.approx(expected.item(), rel=1e-6) and terms["loss"] == total


def test_reconstruction_and_alignment_are_the_first_two_objectives():
    first = whole_loss({"third": Mean()}, alignment_weight=0.25).objectives
    assert list(first) == ["reconstruction", "alignment", "third"]
    assert isinstance(first["reconstruction"], Reconstruction) and isinstance(first["alignment"], Alignment)
    assert all(isinstance(objective, Objective) for objective in first.values())
    assert [objective.weight for objective in first.values()] == [1.0, 0.25, 1.0]


def test_heads_are_trained_and_kept_under_the_objectives_name():
    objectives = {"third": Mean(heads=Recording())}
    net, (image, target, _, arguments) = network(objectives), batch()
    whole_loss(objectives)(net(image, **arguments), target).backward()
    assert net.third.scale.grad.abs() > 0
    assert net.state_dict().keys() - network({}).state_dict().keys() == {"third.scale"}


@pytest.mark.parametrize("segres", [False, True], ids=["coarse", "full"])
def test_heads_see_every_level_and_what_the_decoder_makes_of_its_hidden_part(segres: bool):
    heads = Recording()
    net, (image, _, _, arguments) = network({"third": Mean(heads=heads)}, segres=segres), batch(1)
    out = net(image, **arguments)
    ((views,),) = heads.calls
    assert [len(view.spacing) for view in views] == [2, 4]
    step = 1 if segres else 2
    assert [view.decoded.shape[2:] for view in views] == [(16 // step,) * 3, (8 // step,) * 3]
    for view, reconstruction in zip(views, out["made"]["reconstruction"], strict=True):
        assert torch.equal(net.decoder.reconstruct(view.decoded), reconstruction)
        assert view.full is None


def test_the_loss_sees_every_tensor_of_the_batch():
    objective = Mean(heads=Recording())
    net, (image, target, _, arguments) = network({"third": objective}), batch(organ=torch.tensor([4, 7]))
    whole_loss({"third": objective})(net(image, **arguments), target)
    seen = objective.target
    assert seen["organ"].tolist() == [4, 7] and seen["children"] == []
    assert torch.equal(seen["visible"], arguments["visible"]) and torch.equal(seen["hidden"], arguments["hidden"])


def test_an_objective_without_heads_scores_the_views():
    class Small(Objective):
        def loss(self, made, target):  # noqa: ARG002 - the signature
            return torch.stack([(view.features[-1] ** 2).to_dense().mean() for view in made]).mean(), {}

    objectives = {"small": Small(weight=100.0)}
    net, (image, target, _, arguments) = network(objectives), batch()
    out = net(image, **arguments)
    loss = whole_loss(objectives)(out, target)
    dense = out["made"]["small"][0].features[-1].to_dense()
    torch.testing.assert_close(out["terms"]["small"], dense.square().mean())
    assert loss > out["terms"]["reconstruction"]
    assert net.state_dict().keys() == network({}).state_dict().keys()


@pytest.mark.parametrize("nothing", [None, []], ids=["none", "empty"])
def test_heads_that_make_nothing_have_no_loss(nothing):
    class Silent(nn.Module):
        def forward(self, views):  # noqa: ARG002 - the signature
            return nothing

    objectives = {"third": Mean(heads=Silent())}
    net, (image, target, _, arguments) = network(objectives), batch()
    out = net(image, **arguments)
    whole_loss(objectives)(out, target)
    assert "third" not in out["made"] and "third" not in out["terms"]


def test_a_teacher_shows_the_whole_crop_and_averages_the_heads():
    objectives = {"third": Taught(heads=Recording())}
    net, (image, _, _, arguments) = network(objectives, teacher_momentum=0.75), batch(1)
    net(image, **arguments)
    ((views, teacher),) = net.third.calls
    for view, level in zip(views, [arguments["hidden"], arguments["children"][0].hidden], strict=True):
        assert len(view.full[-1].layout) > len(view.features[-1].layout), "the hidden part as well"
        assert len(view.full[-1].layout) == level.numel()
        assert not view.full[-1].to_dense().requires_grad
    assert teacher is not net.third and not teacher.scale.requires_grad
    net.update_teacher()  # the first update copies
    with torch.no_grad():
        net.third.scale.fill_(5.0)
    net.update_teacher()
    assert net.teacher.heads["third"].scale.item() == pytest.approx(0.75 * 1 + 0.25 * 5)


def test_a_teacher_of_two_keeps_the_alignments_keys():
    objectives = {"third": Taught(heads=Recording())}
    both = network(objectives, alignment=True, teacher_momentum=0.9)
    one = network({}, alignment=True, teacher_momentum=0.9)
    extra = both.state_dict().keys() - one.state_dict().keys()
    assert extra == {"third.scale", "teacher.average.module.third.scale"}
    assert one.state_dict().keys() < both.state_dict().keys()


def test_an_objective_that_needs_a_teacher_says_so_in_one_line():
    with pytest.raises(UserError, match=r"objectives#third needs a teacher.*teacher_momentum") as error:
        network({"third": Taught()})
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "name", ["encoder", "decoder", "alignment", "teacher", "reconstruction", "heads", "a b", "x.y"]
)
def test_a_name_that_is_taken_is_refused(name: str):
    with pytest.raises(UserError, match=f"objectives#{name}"):
        network({name: Mean()})


def test_a_negative_weight_is_refused():
    with pytest.raises(UserError, match=r"weight -1\.0 of the third"):
        whole_loss({"third": Mean(weight=-1.0)})
    with pytest.raises(UserError, match="objectives#alignment"):
        whole_loss({"alignment": Mean()})
