# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""nnU-Net's encoder and decoder by a plan with thick slices: sparse equals dense, and both are nnU-Net's own."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from bundle.data.nnunet import read_plan
from bundle.errors import UserError
from bundle.masking import AdaptiveBlocks, MaskSampler
from bundle.networks import Decoder, Encoder, NnunetDecoder, PretrainingNetwork, build_encoder, encoder_from_plan
from tests.data.nnunet.folders import plan

NETWORKS = ("PlainConvUNet", "ResidualEncoderUNet")


def encoder_of(folder: Path, network: str, **architecture) -> Encoder:
    content = plan(network)
    content["configurations"]["3d_fullres"]["architecture"]["arch_kwargs"] |= architecture
    (folder / "nnUNetPlans.json").write_text(json.dumps(content))
    torch.manual_seed(0)
    return encoder_from_plan(read_plan(folder / "nnUNetPlans.json"))


def hidden_cells(encoder: Encoder, image: Tensor) -> tuple[Tensor, Tensor]:
    """Masks as pre-training draws them."""
    sampler = MaskSampler(rule=AdaptiveBlocks(ratio=0.6), cell=encoder.total_stride)
    visible, hidden = sampler(torch.ones_like(image[:, :1], dtype=torch.bool), torch.arange(len(image)))
    assert 0.2 < hidden.float().mean() < 0.8
    return visible, hidden


def run(network: PretrainingNetwork, image: Tensor, visible: Tensor, hidden: Tensor) -> Tensor:
    return network(image, visible=visible, hidden=hidden, spacing=torch.ones(len(image), 3))["reconstruction"]


#: kernels, strides and the total stride of plans for thick and for very thick slices
ANISOTROPIC = {
    "(4, 8, 16)": {"features_per_stage": [2, 2, 3, 3, 4]},
    "(8, 32, 32)": {
        "kernel_sizes": [[1, 3, 3], [1, 3, 3], [3, 3, 3], [3, 3, 3], [3, 3, 3], [3, 3, 3]],
        "strides": [[1, 1, 1], [1, 2, 2], [1, 2, 2], [2, 2, 2], [2, 2, 2], [2, 2, 2]],
        "n_stages": 6,
        "features_per_stage": [2, 2, 2, 3, 3, 4],
        "n_conv_per_stage_decoder": [1] * 5,
    },
    "(1, 32, 32)": {
        "kernel_sizes": [[1, 3, 3]] * 6,
        "strides": [[1, 1, 1], *[[1, 2, 2]] * 5],
        "n_stages": 6,
        "features_per_stage": [2, 2, 2, 3, 3, 4],
        "n_conv_per_stage_decoder": [1] * 5,
    },
}


@pytest.mark.parametrize(
    ("network", "strides"),
    [*((name, "(4, 8, 16)") for name in NETWORKS), ("PlainConvUNet", "(8, 32, 32)"), ("PlainConvUNet", "(1, 32, 32)")],
)
def test_sparse_equals_the_dense_reference_in_values_and_gradients(network: str, strides: str, tmp_path: Path):
    more = ANISOTROPIC[strides]
    counts = {"n_conv_per_stage" if network == "PlainConvUNet" else "n_blocks_per_stage": [1] * more.get("n_stages", 5)}
    encoder = encoder_of(tmp_path, network, **more, **counts)
    assert str(encoder.total_stride) == strides
    image = torch.randn(1, 2, *(2 * step for step in encoder.total_stride), dtype=torch.float64)
    results = []
    for executor in ("cells", "masked"):
        torch.manual_seed(1)
        net = PretrainingNetwork(
            encoder=encoder, decoder=NnunetDecoder(encoder=encoder, channels=2), executor=executor
        ).double()
        visible, hidden = hidden_cells(encoder, image)
        made = run(net, image, visible, hidden)
        assert made.shape == image.shape
        weights = [parameter for parameter in net.parameters() if parameter.requires_grad]
        gradients = torch.autograd.grad(made.square().sum(), weights, allow_unused=True)
        results.append((made.detach(), [g for g in gradients if g is not None]))
    (ours, our_gradients), (dense, dense_gradients) = results
    torch.testing.assert_close(ours, dense, rtol=1e-12, atol=1e-12)
    largest = max(float(gradient.abs().max()) for gradient in dense_gradients)
    for one, other in zip(our_gradients, dense_gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-12 * largest)


@pytest.mark.parametrize("network", NETWORKS)
def test_where_nothing_is_hidden_encoder_and_decoder_are_nnunets_own_network(network: str, tmp_path: Path):
    encoder = encoder_of(tmp_path, network)
    decoder = NnunetDecoder(encoder=encoder, channels=2)
    net = PretrainingNetwork(encoder=encoder, decoder=decoder).double().eval()
    whole = build_encoder(**encoder.settings).network.double().eval()
    given = whole.state_dict() | dict(net.encoder_state_dict())
    kept = {key: value for key, value in net.decoder_state_dict().items() if not key.startswith("mask_tokens.")}
    names = {key.replace("head.", f"seg_layers.{len(decoder.stages) - 1}."): value for key, value in kept.items()}
    assert {f"decoder.{key}" for key in names} <= given.keys()
    whole.load_state_dict(given | {f"decoder.{key}": value for key, value in names.items()})
    image = torch.randn(1, 2, 8, 16, 32, dtype=torch.float64)
    everything = torch.ones(1, 1, 2, 2, 2, dtype=torch.bool)
    seen = everything.clone()
    seen[..., 0] = False
    with torch.no_grad():
        beyond = torch.zeros_like(image)
        beyond[..., :16] = 99
        assert torch.equal(run(net, image, seen, ~seen), run(net, image + beyond, seen, ~seen))
        torch.testing.assert_close(run(net, image, everything, ~everything), whole(image), rtol=1e-12, atol=1e-12)


def test_it_begins_as_nnunet_begins_and_all_of_it_is_trained(tmp_path: Path):
    decoder = NnunetDecoder(encoder=encoder_of(tmp_path, "PlainConvUNet", features_per_stage=[16, 16, 16, 16, 32]))
    assert all(parameter.requires_grad for parameter in decoder.parameters())
    convolution = decoder.stages[0].convs[0].conv
    he = (2 / (1 + 1e-4) / convolution.weight[0].numel()) ** 0.5
    assert convolution.weight.std().item() == pytest.approx(he, rel=0.1)
    assert not convolution.bias.any()
    assert len(list(decoder.refine)) == 4


def test_the_small_decoder_fits_a_plan_too(tmp_path: Path):
    encoder = encoder_of(tmp_path, "ResidualEncoderUNet")
    net = PretrainingNetwork(encoder=encoder, decoder=Decoder(levels=encoder.levels, width=8, channels=2))
    image = torch.randn(2, 2, 12, 24, 48)
    assert run(net, image, *hidden_cells(encoder, image)).shape == image.shape
    assert net.decoder_state_dict() == {}


def test_another_encoder_has_another_half():
    encoder = build_encoder("SegResEncoder", init_filters=4, blocks_down=[1, 1])
    with pytest.raises(UserError, match="other half of ResidualEncoderUNet or PlainConvUNet, not of SegResEncoder: ch"):
        NnunetDecoder(encoder=encoder)
