# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""The whole network: leaks, parity of executors, gradients in the presets' sizes."""

from __future__ import annotations

import pytest
import torch

from bundle.losses import AlignmentLoss, PretrainingLoss, ReconstructionLoss
from bundle.masking import AdaptiveBlocks, MaskSampler
from bundle.networks import Decoder, EncoderDepthPairs, PretrainingNetwork, build_encoder
from bundle.sparse import SparseVolume

LOSS = PretrainingLoss(
    reconstruction=ReconstructionLoss(target="per_volume", visible_weight=0.0), alignment=AlignmentLoss()
)


def network(filters: int = 4, blocks=(1, 1, 1, 1, 1), executor: str = "cells", **options) -> PretrainingNetwork:
    torch.manual_seed(0)
    encoder = build_encoder("SegResEncoder", init_filters=filters, blocks_down=blocks, norm="instance")
    return PretrainingNetwork(
        encoder=encoder,
        decoder=Decoder(levels=encoder.levels, width=8),
        alignment=EncoderDepthPairs(levels=encoder.levels, dim=16, samples=64),
        executor=executor,
        **options,
    )


def batch(crop: int, size: int = 2) -> dict[str, torch.Tensor]:
    torch.manual_seed(1)
    valid = torch.ones(size, 1, crop, crop, crop, dtype=torch.bool)
    mask = MaskSampler(rule=AdaptiveBlocks(), cell=(16, 16, 16))(valid, torch.arange(size))
    image = torch.randn(size, 1, crop, crop, crop)
    return {"image": image, "valid": valid, "foreground": image > 0, "visible": mask.visible, "hidden": mask.hidden}


def forward(net: PretrainingNetwork, data: dict[str, torch.Tensor]):
    return net(data["image"], visible=data["visible"], hidden=data["hidden"], spacing=torch.ones(len(data["image"]), 3))


def hidden_voxels(data: dict[str, torch.Tensor]) -> torch.Tensor:
    mask = ~data["visible"]
    for axis in (2, 3, 4):
        mask = mask.repeat_interleave(16, axis)
    return mask


@pytest.mark.parametrize("executor", sorted(SparseVolume.executors))
def test_masked_voxels_change_no_bit_of_the_reconstruction(executor):
    net, data = network(executor=executor), batch(32)
    changed = data | {"image": torch.where(hidden_voxels(data), torch.rand(()) * 1e5, data["image"])}
    assert torch.equal(forward(net, data)["reconstruction"], forward(net, changed)["reconstruction"])


@pytest.mark.parametrize("executor", sorted(SparseVolume.executors))
def test_the_predictions_gradient_on_masked_voxels_is_exactly_zero(executor):
    net, data = network(executor=executor), batch(32)
    data["image"].requires_grad_()
    forward(net, data)["reconstruction"].square().sum().backward()
    hidden = hidden_voxels(data)
    assert (data["image"].grad[hidden] == 0).all() and (data["image"].grad[~hidden] != 0).any()


def test_executors_agree_in_loss_and_every_parameter_gradient():
    data = {k: v.double() if v.is_floating_point() else v for k, v in batch(48).items()}
    results = []
    for executor in ("cells", "masked"):
        net = network(executor=executor).double()
        torch.manual_seed(2)  # the sites drawn for alignment
        loss = LOSS(forward(net, data), data)
        loss.backward()
        results.append((loss.detach(), {name: p.grad for name, p in net.named_parameters()}))
    (loss, gradients), (expected_loss, expected) = results
    assert abs(loss - expected_loss) <= 1e-12 * abs(expected_loss)
    for name, b in expected.items():
        assert (gradients[name] - b).abs().max() <= 1e-12 * b.abs().max().clamp(min=1e-6), name


@pytest.mark.parametrize("crop", [32, 64, 128], ids=["dev", "small", "prod"])
def test_every_parameter_gets_a_finite_gradient_that_is_not_zero(crop: int):
    net, data = network(blocks=(1, 2, 2, 4, 4)), batch(crop)
    LOSS(forward(net, data), data).backward()
    for name, p in net.named_parameters():
        assert p.grad is not None and p.grad.isfinite().all(), name
        assert p.grad.abs().max() > 0, name


def test_autocast_keeps_the_reconstruction_in_the_images_type():
    out = forward(network(autocast=torch.bfloat16), batch(32))
    assert out["reconstruction"].dtype == torch.float32
    assert out["made"]["alignment"][0].query.dtype == torch.bfloat16  # it did run in half precision


def test_the_product_is_the_plain_encoders_state_dict():
    net = network()
    product = net.encoder_state_dict()
    assert product.keys() == net.encoder.network.state_dict().keys()
    assert not any(value.requires_grad for value in product.values())
    build_encoder("SegResEncoder", init_filters=4, blocks_down=(1,) * 5, norm="instance").network.load_state_dict(
        product
    )


def test_a_compiled_decoder_reconstructs_the_same_under_the_same_keys():
    data = batch(32)
    plain, compiled = network(), network(compile_decoder=True)
    assert plain.state_dict().keys() == compiled.state_dict().keys()
    torch.manual_seed(2)
    expected = forward(plain, data)["reconstruction"]
    torch.manual_seed(2)
    torch.testing.assert_close(forward(compiled, data)["reconstruction"], expected, rtol=1e-4, atol=1e-5)
