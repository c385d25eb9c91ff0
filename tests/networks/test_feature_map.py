# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""The published network has the MONAI network's keys, its coarsest features, and a TorchScript form."""

from __future__ import annotations

import pytest
import torch
from monai.networks.nets.segresnet_ds import SegResEncoder

from bundle.errors import UserError
from bundle.networks import build_encoder, build_feature_map, total_stride
from tests.networks.encoder_cases import CASES, Case, dense_features

SEGRES = {"init_filters": 4, "blocks_down": [1, 1, 2], "norm": ["instance", {"affine": True}]}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_the_encoders_weights_load_strictly_and_give_monais_own_features(case: Case):
    torch.manual_seed(0)
    encoder = build_encoder(case.name, **case.arguments).eval()
    for buffer in encoder.network.buffers():  # running statistics that count
        if buffer.is_floating_point():
            buffer.uniform_(0.5, 1.5)
    network = build_feature_map({"name": case.name, **case.arguments}).eval()
    network.load_state_dict(encoder.network_state_dict(), strict=True)
    stride = total_stride({"name": case.name, **case.arguments})
    image = torch.randn(1, 1, *(s * cells for s, cells in zip(stride, case.grid)))
    with torch.no_grad():
        features = network(image)
        assert features.shape[2:] == case.grid
        torch.testing.assert_close(features, dense_features(encoder.network, case.outputs, image)[-1])


def test_keys_are_those_of_monais_segres_encoder():
    plain = SegResEncoder(init_filters=4, blocks_down=(1, 1, 2), norm=("instance", {"affine": True})).eval()
    network = build_feature_map({"name": "SegResEncoder", **SEGRES}).eval()
    network.load_state_dict(plain.state_dict(), strict=True)
    plain.load_state_dict(network.state_dict(), strict=True)
    image = torch.randn(1, 1, 16, 8, 12)
    torch.testing.assert_close(network(image), plain(image)[-1])


@pytest.mark.parametrize("name", ["SegResEncoder", "ResNet 10, basic block, shortcut B", "DynUNet, residual", "VNet"])
def test_torchscript_gives_the_same(name: str):
    case = CASES[name]
    network = build_feature_map({"name": case.name, **case.arguments}).eval()
    scripted = torch.jit.script(network)
    for cells in ((2, 2, 2), (3, 2, 4)):
        image = torch.randn(1, 1, *(s * c for s, c in zip(total_stride({"name": case.name, **case.arguments}), cells)))
        with torch.no_grad():
            torch.testing.assert_close(scripted(image), network(image))


@pytest.mark.parametrize(
    ("encoder", "message"),
    [
        ({"init_filters": 4}, "names no network"),
        ({"name": "SegResNetEncoder"}, "did you mean"),
        (None, "names no network"),
    ],
)
def test_an_encoder_that_is_none_is_a_clear_error(encoder, message: str):
    with pytest.raises(UserError, match=message):
        build_feature_map(encoder)
    with pytest.raises(UserError, match=message):
        total_stride(encoder)
