# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""The teacher, children and the dense comparison inside the pre-training network."""

from __future__ import annotations

import pytest
import torch

from bundle.errors import UserError
from bundle.losses import AlignmentLoss, PretrainingLoss, ReconstructionLoss
from bundle.masking import AdaptiveBlocks, ChildLevel, MaskedBatch, MaskInMask, MaskSampler
from bundle.networks import Decoder, EncoderDepthPairs, PretrainingNetwork, Teacher, VolumeLevelPairs, build_encoder

CELL = (4, 4, 4)


def network(alignment: str | None = "depth", momentum: float | None = 0.9, **options) -> PretrainingNetwork:
    torch.manual_seed(0)
    encoder = build_encoder("SegResEncoder", init_filters=4, blocks_down=(1, 1, 1), norm="instance")
    heads = None
    if alignment == "depth":
        heads = EncoderDepthPairs(levels=encoder.levels, dim=8, samples=32, head="mlp", predictor=True)
    elif alignment == "level":
        heads = VolumeLevelPairs(levels=encoder.levels, dim=8, samples=32)
    return PretrainingNetwork(
        encoder=encoder,
        decoder=Decoder(levels=encoder.levels, width=8, stride=2),
        alignment=heads,
        teacher_momentum=momentum,
        **options,
    )


def prepared(levels: int = 0, size: int = 16, rows: int = 2):
    torch.manual_seed(1)
    masking = MaskSampler(rule=AdaptiveBlocks(), cell=CELL)
    children = [ChildLevel(masking=masking, children=2, size=(s, s, s)) for s in (12, 8)[:levels]]
    image = torch.randn(rows, 1, size, size, size)
    batch = {
        "image": image,
        "valid": torch.ones_like(image, dtype=torch.bool),
        "foreground": image > 0,
        "draw": torch.arange(rows),
        "spacing": torch.ones(rows, 3),
    }
    return MaskedBatch(MaskInMask(masking=masking, levels=children))(batch)


def loss_of(net: PretrainingNetwork, data, **options) -> tuple[torch.Tensor, dict]:
    image, target, _, arguments = data
    out = net(image, **arguments)
    loss = PretrainingLoss(
        reconstruction=ReconstructionLoss(target="per_volume", visible_weight=0.0), alignment=AlignmentLoss(), **options
    )
    return loss(out, target), out["terms"]


def test_the_gradient_reaches_the_encoder_and_not_the_teacher():
    net, data = network(), prepared()
    loss, _ = loss_of(net, data, alignment_weight=1.0, level_weights=[1e-9])
    loss.backward()
    for name, parameter in net.named_parameters():
        if name.startswith("teacher."):
            assert not parameter.requires_grad and parameter.grad is None, name
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in net.encoder.parameters() if p.ndim > 1)
    for name, parameter in net.alignment.named_parameters():  # DistributedDataParallel waits for each
        assert parameter.grad is not None, name


def test_the_teacher_is_the_moving_average():
    net = network(momentum=0.75)
    before = {k: v.clone() for k, v in net.encoder.state_dict().items()}
    net.update_teacher()  # the first update copies
    with torch.no_grad():
        for parameter in net.encoder.parameters():
            parameter.add_(1.0)
    net.update_teacher()
    averaged = net.teacher.average.module["encoder"].state_dict()
    for key, value in before.items():
        if value.is_floating_point():
            torch.testing.assert_close(averaged[key], 0.75 * value + 0.25 * (value + 1))


def test_the_teacher_sees_the_masked_part_and_the_student_does_not():
    net, (image, _, _, arguments) = network(), prepared()
    hidden = arguments["hidden"]
    for axis in (2, 3, 4):
        hidden = hidden.repeat_interleave(4, axis)
    changed = torch.where(hidden, image + 1, image)
    outs = []
    for x in (image, changed):
        torch.manual_seed(2)
        outs.append(net(x, **arguments))
    for a, b in zip(*(out["made"]["alignment"] for out in outs), strict=True):
        assert torch.equal(a.query, b.query)
        assert not torch.equal(a.key, b.key)
    assert torch.equal(outs[0]["reconstruction"], outs[1]["reconstruction"])


def test_the_teacher_is_in_the_checkpoint_and_not_in_the_product():
    net = network()
    assert any(key.startswith("teacher.") for key in net.state_dict())
    assert net.encoder_state_dict().keys() == network(None, None).encoder_state_dict().keys()
    other = network()
    other.load_state_dict(net.state_dict())


@pytest.mark.parametrize("levels", [0, 1, 2])
def test_every_level_is_reconstructed_and_weighted(levels: int):
    net, data = network(None, None), prepared(levels)
    with torch.no_grad():  # a mean over crops, as the terms are
        loss, terms = loss_of(net, data, level_weights=[1.0, 0.5, 0.25])
    names = ["reconstruction", "reconstruction_level2", "reconstruction_level3"][: levels + 1]
    expected = sum(w * terms[name] for w, name in zip((1.0, 0.5, 0.25), names))
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    assert set(names) <= terms.keys() and f"reconstruction_level{levels + 2}" not in terms


def test_one_level_of_children_is_the_network_on_those_children():
    net, (image, target, _, arguments) = network(None, None), prepared(1)
    (level,) = arguments["children"]
    out = net(image, **arguments)
    alone = net(level.image, visible=level.visible, hidden=level.hidden, spacing=level.spacing)
    torch.testing.assert_close(out["made"]["reconstruction"][1], alone["reconstruction"])
    assert target["children"] == [level]


def test_level_pairs_run_through_the_network_and_train_it():
    net, data = network("level"), prepared(2)
    loss, terms = loss_of(net, data, alignment_weight=1.0)
    loss.backward()
    assert terms["alignment"].isfinite() and terms["alignment_same"] < 1
    for name, parameter in net.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, name


def test_more_levels_than_weights_are_refused():
    with pytest.raises(UserError, match="level_weights"):
        loss_of(network(None, None), prepared(2), level_weights=[1.0, 1.0])


def test_a_teacher_needs_something_to_teach():
    with pytest.raises(UserError, match="teacher_momentum"):
        network(None, 0.9)
    encoder = build_encoder("SegResEncoder", init_filters=4, blocks_down=(1, 1))
    with pytest.raises(UserError, match=r"teacher_momentum 1\.5"):
        Teacher(encoder, {}, 1.5)


# ---- the dense comparison --------------------------------------------------------------------------------------------


def test_the_dense_masked_autoencoder_is_the_dense_encoder_on_zeros():
    net, (image, _, _, arguments) = network(None, None, sparse=False).double(), prepared()
    image = image.double()
    seen = arguments["visible"].repeat_interleave(4, 2).repeat_interleave(4, 3).repeat_interleave(4, 4)
    expected = net.encoder.network(image * seen)
    layout = net._lay_out(arguments["visible"], arguments["hidden"], image.device)
    features = net._encode(image, arguments["visible"], layout)
    for a, b in zip(features, expected, strict=True):
        torch.testing.assert_close(a.to_dense(), b, rtol=1e-10, atol=1e-10)


def test_the_dense_masked_autoencoder_does_not_see_hidden_voxels_either():
    net, (image, _, _, arguments) = network(None, None, sparse=False), prepared()
    hidden = arguments["hidden"].repeat_interleave(4, 2).repeat_interleave(4, 3).repeat_interleave(4, 4)
    changed = torch.where(hidden, image + 1e5, image)
    assert torch.equal(net(image, **arguments)["reconstruction"], net(changed, **arguments)["reconstruction"])


def test_every_parameter_of_the_dense_one_gets_a_gradient():
    net = network(sparse=False, momentum=None)
    loss, _ = loss_of(net, prepared())
    loss.backward()
    for name, parameter in net.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, name
    frozen = {name for name, parameter in net.named_parameters() if not parameter.requires_grad}
    assert all(name.startswith("alignment.predict.2") for name in frozen)
