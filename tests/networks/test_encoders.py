# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""Every encoder: its levels, its agreement with the dense network and between executors, and what it hands on."""

from __future__ import annotations

from math import prod

import pytest
import torch
from monai.networks.nets.segresnet_ds import SegResEncoder, SegResNetDS

from bundle.errors import UserError
from bundle.networks import Decoder, Encoder, EncoderDepthPairs, PretrainingNetwork, build_encoder
from bundle.sparse import SparseVolume
from tests.networks.encoder_cases import CASES, Case, dense_features

every_encoder = pytest.mark.parametrize("case", CASES.values(), ids=CASES)


def build(case: Case, dtype: torch.dtype = torch.float64) -> Encoder:
    torch.manual_seed(0)
    encoder = build_encoder(case.name, **case.arguments)
    with torch.no_grad():  # not the initial zeros and ones, with which a forgotten parameter would not show
        for parameter in encoder.parameters():
            if parameter.ndim == 1 or parameter.numel() == parameter.shape[1]:
                parameter.add_(torch.randn_like(parameter) * 0.2)
    return encoder.to(dtype)


def batch(encoder: Encoder, case: Case) -> tuple[torch.Tensor, torch.Tensor]:
    """A batch of two, with unequal numbers of visible cells."""
    generator = torch.Generator().manual_seed(3)
    image = torch.randn(2, 1, *(g * s for g, s in zip(case.grid, encoder.total_stride)), generator=generator)
    visible = torch.zeros(2, prod(case.grid), dtype=torch.bool)
    for sample, hidden in enumerate((1, prod(case.grid) // 2)):
        visible[sample, torch.randperm(prod(case.grid), generator=generator)[hidden:]] = True
    return image.double(), visible.view(2, 1, *case.grid)


def features_and_gradients(case: Case, executor: str):
    encoder = build(case)
    image, visible = batch(encoder, case)
    torch.manual_seed(1)  # drop-path draws
    features = [f.to_dense() for f in encoder(SparseVolume.from_dense(image, visible, executor))]
    generator = torch.Generator().manual_seed(4)
    sum((f * torch.randn(f.shape, dtype=f.dtype, generator=generator)).sum() for f in features).backward()
    gradients = {name: p.grad for name, p in encoder.named_parameters() if p.requires_grad}
    return [f.detach() for f in features], gradients


@every_encoder
def test_cells_equal_the_masked_reference_in_features_and_every_gradient(case: Case):
    features, gradients = features_and_gradients(case, "cells")
    expected_features, expected_gradients = features_and_gradients(case, "masked")
    for a, b in zip(features, expected_features, strict=True):
        assert (a - b).abs().max() <= 1e-12 * b.abs().max()
    # a bias right before a norm has a gradient of zero, of which only the rounding of larger terms is left
    scale = max(gradient.abs().max() for gradient in expected_gradients.values())
    for name, b in expected_gradients.items():
        assert b.isfinite().all(), name
        assert (gradients[name] - b).abs().max() <= 1e-12 * b.abs().max().clamp(min=1e-2 * scale), name


@every_encoder
def test_with_everything_visible_it_is_the_dense_network(case: Case):
    encoder = build(case)
    image, visible = batch(encoder, case)
    torch.manual_seed(1)
    expected = dense_features(encoder.network, case.outputs, image)
    torch.manual_seed(1)
    features = encoder(SparseVolume.from_dense(image, torch.ones_like(visible)))
    for feature, dense, level in zip(features, expected, encoder.levels, strict=True):
        assert (feature.to_dense() - dense).abs().max() <= 1e-10 * dense.abs().max()
        assert dense.shape[1] == level.channels
        assert tuple(n // m for n, m in zip(image.shape[2:], dense.shape[2:])) == level.stride


@every_encoder
def test_what_it_hands_on_is_what_it_trains_under_the_networks_own_keys(case: Case):
    encoder = build(case, torch.float32)
    state = encoder.network_state_dict()
    trained = {name.removeprefix("network.") for name, p in encoder.named_parameters() if p.requires_grad}
    assert trained <= state.keys() <= encoder.network.state_dict().keys()
    again = build_encoder(case.name, **case.arguments)
    with torch.no_grad():
        for tensor in again.state_dict().values():
            tensor.zero_()
    again.network.load_state_dict(state, strict=False)
    image, visible = batch(encoder, case)
    for a, b in zip(*(e.eval()(SparseVolume.from_dense(image.float(), visible)) for e in (encoder, again))):
        assert torch.equal(a.to_dense(), b.to_dense())


def test_a_network_with_one_module_under_two_names_hands_on_both():
    encoder = build(CASES["DynUNet, residual"], torch.float32)
    target = build_encoder("DynUNet", **CASES["DynUNet, residual"].arguments).network
    merged = {**target.state_dict(), **encoder.network_state_dict()}  # the other usual way to load a part
    target.load_state_dict(merged)
    for key, value in encoder.network_state_dict().items():
        assert torch.equal(target.state_dict()[key], value), key


def test_decoder_and_classifier_are_neither_trained_nor_handed_on():
    encoder = build_encoder("BasicUNet", features=(4, 4, 6, 6, 8, 4))
    frozen = {name.split(".")[0] for name, p in encoder.network.named_parameters() if not p.requires_grad}
    assert frozen == {"upcat_4", "upcat_3", "upcat_2", "upcat_1", "final_conv"}
    assert not any(key.split(".")[0] in frozen for key in encoder.network_state_dict())


@pytest.mark.parametrize("name", ["ResNet, bottleneck", "DynUNet, anisotropic", "EfficientNet"])
def test_it_pretrains_with_every_trained_parameter_receiving_a_gradient(name: str):
    encoder = build(CASES[name], torch.float32)
    network = PretrainingNetwork(
        encoder=encoder,
        decoder=Decoder(levels=encoder.levels, width=4),
        alignment=EncoderDepthPairs(levels=encoder.levels, dim=8, samples=16),
    )
    image, visible = batch(encoder, CASES[name])
    out = network(image.float(), visible=visible, hidden=~visible, spacing=torch.ones(2, 3))
    assert out["reconstruction"].shape == image.shape
    pairs = sum((pair.query * pair.key).sum() for pair in out["made"]["alignment"])
    (out["reconstruction"].square().mean() + pairs).backward()
    for key, parameter in network.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, key
    assert network.encoder_state_dict().keys() == encoder.network_state_dict().keys()


def test_resnet_features_are_monais_own():
    encoder = build_encoder("ResNetFeatures", model_name="resnet10").eval()
    image = torch.randn(1, 1, 32, 32, 32)
    with torch.no_grad():
        for ours, theirs in zip(encoder(image), encoder.network(image), strict=True):
            assert torch.equal(ours, theirs)


def test_efficientnet_b0_features_are_monais_own():
    encoder = build_encoder("EfficientNetBNFeatures", model_name="efficientnet-b0").eval()
    image = torch.randn(1, 1, 32, 32, 32)
    everything = torch.ones(1, 1, 1, 1, 1, dtype=torch.bool)
    with torch.no_grad():
        features = encoder(SparseVolume.from_dense(image, everything))
        for ours, theirs, level in zip(features, encoder.network(image), encoder.levels, strict=True):
            torch.testing.assert_close(ours.to_dense(), theirs, rtol=1e-4, atol=1e-4)
            assert theirs.shape[1] == level.channels
    assert encoder.total_stride == (32, 32, 32)


def test_the_network_is_monais_own_with_its_own_keys_and_weights():
    torch.manual_seed(0)
    encoder = build_encoder("SegResEncoder", init_filters=4, blocks_down=(1, 1))
    torch.manual_seed(0)
    plain = SegResEncoder(init_filters=4, blocks_down=(1, 1))
    assert type(encoder.network) is SegResEncoder
    for (key, a), (plain_key, b) in zip(encoder.network.state_dict().items(), plain.state_dict().items(), strict=True):
        assert key == plain_key and torch.equal(a, b)


def test_its_weights_load_strictly_into_the_segmentation_network():
    arguments = dict(init_filters=4, blocks_down=(1, 1, 1), norm=("instance", {"affine": True}))
    encoder = build_encoder("SegResEncoder", **arguments)
    SegResNetDS(out_channels=2, **arguments).encoder.load_state_dict(encoder.network_state_dict(), strict=True)


def test_settings_rebuild_the_encoder():
    encoder = build_encoder("DenseNet", block_config=(1, 1), init_features=4, growth_rate=2)
    again = build_encoder(**encoder.settings)
    assert again.levels == encoder.levels and again.settings == encoder.settings


def test_a_misspelt_name_suggests_the_right_one():
    with pytest.raises(UserError, match="did you mean 'SegResEncoder'"):
        build_encoder("SegResEncodr")


def test_an_argument_the_network_does_not_take_is_named():
    with pytest.raises(UserError, match="filters"):
        build_encoder("SegResEncoder", filters=3)
