# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""nnU-Net's networks by their plans: the real size, the names of the published weights, and what is refused."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from bundle.errors import UserError
from bundle.networks import Decoder, PretrainingNetwork, build_encoder
from bundle.weights import ModelFiles, read_weights
from tests.networks.encoder_cases import CASES


def test_without_arguments_it_is_resenc_l_with_the_published_number_of_tensors():
    """956 tensors, 448 of the encoder: what the notes on nnFoundationCNN's file count."""
    with torch.device("meta"):
        encoder = build_encoder("ResidualEncoderUNet", num_classes=3, deep_supervision=True)
    keys = encoder.network.state_dict().keys()
    assert len(keys) == 956
    assert sum(key.startswith("encoder.") for key in keys) == 448
    trained = {key for key in encoder.network_state_dict() if key.startswith("encoder.")}
    assert len(trained) == 448
    assert encoder.total_stride == (32, 32, 32)
    assert [level.channels for level in encoder.levels] == [32, 64, 128, 256, 320, 320]


def test_a_file_holds_each_tensor_once_under_all_of_its_names(tmp_path: Path):
    small = {**CASES["nnU-Net's ResidualEncoderUNet"].arguments, "features_per_stage": [16, 32, 32, 32]}
    encoder = build_encoder("ResidualEncoderUNet", **small)
    network = PretrainingNetwork(encoder=encoder, decoder=Decoder(levels=encoder.levels, width=8))
    ModelFiles(tmp_path / "model.pt").write(network.encoder_state_dict([torch.randn(1, 1, 16, 16, 16)]), {})
    numbers = sum(parameter.numel() for parameter in network.parameters() if parameter.requires_grad)
    assert (tmp_path / "model.pt").stat().st_size < 4 * numbers + 300_000
    weights = read_weights(tmp_path / "model.pt")
    assert len(weights) == len(encoder.network_state_dict()) > len({w.data_ptr() for w in weights.values()})
    for key, value in encoder.network_state_dict().items():
        assert torch.equal(weights[key], value), key


def test_a_class_that_is_none_of_torch_is_refused_and_not_imported():
    with pytest.raises(UserError, match=r"encoder#nonlin 'antigravity.Net' is no class of torch.nn"):
        build_encoder("PlainConvUNet", n_stages=1, nonlin="antigravity.Net")
    assert "antigravity" not in sys.modules


def test_a_missing_argument_of_a_plan_is_one_line():
    with pytest.raises(UserError, match=r"PlainConvUNet does not take its arguments: .*features_per_stage"):
        build_encoder("PlainConvUNet", n_stages=2)


def test_without_the_package_one_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "dynamic_network_architectures.architectures.unet", None)
    with pytest.raises(UserError, match="pip install dynamic-network-architectures"):
        build_encoder("ResidualEncoderUNet")
