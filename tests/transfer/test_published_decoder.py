# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""The decoder in one file with the encoder, as nnU-Net and nnssl publish them, goes on as well."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch
from torch import nn

from bundle.errors import UserError
from bundle.networks import Decoder, NnunetDecoder, NnunetSegmentation, PretrainingNetwork, build_encoder
from bundle.transfer import load_decoder, load_encoder, load_start

ENCODER = {
    "name": "ResidualEncoderUNet",
    "n_stages": 3,
    "features_per_stage": [4, 6, 8],
    "kernel_sizes": [[3, 3, 3]] * 3,
    "strides": [[1, 1, 1], [2, 2, 2], [2, 2, 2]],
    "n_blocks_per_stage": [1, 1, 1],
}


@pytest.fixture
def published(tmp_path: Path) -> Path:
    """A whole network with axes as here: what turning does is another test's."""
    torch.manual_seed(1)
    network = NnunetSegmentation(encoder=ENCODER, out_channels=4)
    plans = {"image_reader_writer": "NibabelIO", "transpose_forward": [0, 1, 2], "configurations": {"3d_fullres": {}}}
    file = tmp_path / "checkpoint_final.pth"
    torch.save({"network_weights": network.state_dict(), "init_args": {"plans": plans}}, file)
    return file


def decoder_of(file: Path) -> dict[str, torch.Tensor]:
    """The decoder's tensors as they are in the file, under one name each."""
    weights = torch.load(file, weights_only=True)["network_weights"]
    names = ("decoder.stages.", "decoder.transpconvs.")
    return {key: w for key, w in weights.items() if key.startswith(names) and ".all_modules." not in key}


def turned(value: torch.Tensor) -> torch.Tensor:
    """From slices, rows, columns (SPL) to R, A, S, written out."""
    return value.permute(0, 1, 4, 3, 2).flip(2, 3) if value.ndim == 5 else value


def test_fine_tuning_takes_encoder_and_decoder_and_leaves_the_heads(published: Path):
    torch.manual_seed(2)
    network = NnunetSegmentation(encoder=ENCODER, in_channels=2, out_channels=3)
    heads = {key: value.clone() for key, value in network.state_dict().items() if ".seg_layers." in key}
    report = load_encoder(network, published)
    assert report.adapted["encoder.stem.convs.0.conv.weight"] == "1 -> 2 input channels"
    decoder = load_decoder(network, published)
    assert decoder is not None and set(decoder.missing) == set(heads)
    after = network.state_dict()
    assert all(torch.equal(after[key], value) for key, value in heads.items())
    assert all(torch.equal(after[key], turned(value)) for key, value in decoder_of(published).items())


def test_another_decoder_stays_untrained_and_that_is_said(published: Path, caplog: pytest.LogCaptureFixture):
    network = NnunetSegmentation(encoder={**ENCODER, "n_conv_per_stage_decoder": [2, 2]})
    before = {key: value.clone() for key, value in network.state_dict().items()}
    with caplog.at_level(logging.INFO):
        assert load_decoder(network, published) is None
    assert "has another decoder than" in caplog.text
    assert all(torch.equal(network.state_dict()[key], value) for key, value in before.items())


def pretraining(decoder: type[nn.Module]) -> PretrainingNetwork:
    encoder = build_encoder(**ENCODER)
    made = NnunetDecoder(encoder=encoder) if decoder is NnunetDecoder else Decoder(levels=encoder.levels, width=8)
    return PretrainingNetwork(encoder=encoder, decoder=made)


def test_pretraining_goes_on_with_encoder_and_decoder(published: Path, caplog: pytest.LogCaptureFixture):
    with caplog.at_level(logging.INFO):
        network = load_start(pretraining(NnunetDecoder), published)
    after = network.decoder.state_dict()
    expected = {key.removeprefix("decoder."): turned(value) for key, value in decoder_of(published).items()}
    assert all(torch.equal(after[key], value) for key, value in expected.items())
    assert "its last layer and mask tokens start at random" in caplog.text


def test_pretraining_with_another_decoder_takes_the_encoder_alone(published: Path, caplog: pytest.LogCaptureFixture):
    with caplog.at_level(logging.INFO):
        load_start(pretraining(Decoder), published)
    assert "all of the encoder's" in caplog.text and "so the decoder starts at random" in caplog.text


def test_the_network_is_for_nnunets_encoders_only():
    with pytest.raises(UserError, match="is for the encoders ResidualEncoderUNet and PlainConvUNet, not DynUNet"):
        NnunetSegmentation(encoder={"name": "DynUNet"})
