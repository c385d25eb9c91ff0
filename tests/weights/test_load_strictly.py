# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""All weights or none, and one line that says why."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from monai.networks.nets import SegResNetDS
from torch import nn

from bundle.errors import UserError
from bundle.networks import build_feature_map
from bundle.weights import ModelFiles, checksum, load_strictly, read_settings, turn_kernels

DEFAULTS = {"crop_size": [64, 64, 64], "ct_window": [-1000, 1000], "mr_percentiles": [0.5, 99.5]}


def network() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 1))


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    torch.save(network().state_dict(), tmp_path / "model.pt")
    return tmp_path / "model.pt"


def test_every_tensor_is_the_files_and_the_network_is_ready_to_infer(weights: Path):
    loaded = load_strictly(network(), weights)
    assert not loaded.training
    expected = torch.load(weights, weights_only=True)
    assert all(torch.equal(value, expected[key]) for key, value in loaded.state_dict().items())


def test_a_detectors_part_of_an_encoder_is_told_what_to_take_instead(tmp_path: Path):
    tensors = network().state_dict()
    ModelFiles(tmp_path / "model.pt").write(
        {f"encoder.{key}": value for key, value in tensors.items() if key[0] == "0"},
        {"task": "detection", "classes": {"nodule": 0}},
    )
    with pytest.raises(
        UserError, match=r"is of a detector, which keeps the first layers .* the run that it was fine-tuned from"
    ):
        load_strictly(network(), tmp_path / "model.pt")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w.pop("1.bias"), "the two differ in 1 tensors (it holds no 1.bias)"),
        (lambda w: w.update({"2.bias": torch.ones(1)}), "(it holds 2.bias, which it has not)"),
        (lambda w: w.update({"0.weight": torch.ones(5, 3)}), "(it holds 0.weight [5, 3], not [2, 3])"),
    ],
)
def test_another_networks_weights_change_nothing_and_are_named(weights: Path, change, message: str):
    content = torch.load(weights, weights_only=True)
    change(content)
    torch.save(content, weights)
    into = network()
    before = {key: value.clone() for key, value in into.state_dict().items()}
    with pytest.raises(UserError) as error:
        load_strictly(into, weights)
    assert message in str(error.value) and str(weights) in str(error.value) and "\n" not in str(error.value)
    assert all(torch.equal(value, before[key]) for key, value in into.state_dict().items())


def test_a_json_of_other_weights_is_an_error(weights: Path):
    weights.with_suffix(".json").write_text(json.dumps({"sha256": checksum(weights)}))
    load_strictly(network(), weights)
    weights.with_suffix(".json").write_text(json.dumps({"sha256": "0" * 64}))
    with pytest.raises(UserError, match=r"model\.pt is not the file that model\.json describes"):
        load_strictly(network(), weights)


def tuned(folder: Path, channels: int = 1) -> Path:
    """A fine-tuned network with the encoder in it, and its json."""
    whole = nn.ModuleDict(
        {"encoder": nn.Sequential(nn.Conv3d(channels, 2, 3), nn.Linear(2, 1)), "head": nn.Linear(1, 2)}
    )
    ModelFiles(folder / "model.pt").write(whole.state_dict(), {"classes": {"liver": 1}})
    return folder / "model.pt"


def test_of_a_fine_tuned_network_the_encoder_is_taken(tmp_path: Path):
    path, encoder = tuned(tmp_path), nn.Sequential(nn.Conv3d(1, 2, 3), nn.Linear(2, 1))
    loaded, expected = load_strictly(encoder, path), torch.load(path, weights_only=True)
    assert all(torch.equal(value, expected[f"encoder.{key}"]) for key, value in loaded.state_dict().items())
    about = json.loads(path.with_suffix(".json").read_text())
    path.with_suffix(".json").write_text(json.dumps({key: about[key] for key in about if key != "classes"}))
    with pytest.raises(UserError, match="does not fit the network"):
        load_strictly(encoder, path)


def test_a_fine_tuned_encoder_of_several_channels_is_one_line(tmp_path: Path):
    with pytest.raises(UserError, match="was fine-tuned on volumes of 4 channels, and a volume here has 1: give"):
        load_strictly(nn.Sequential(nn.Conv3d(1, 2, 3), nn.Linear(2, 1)), tuned(tmp_path, channels=4))


def test_kernels_of_other_axes_are_turned_where_the_volumes_axes_are_named(tmp_path: Path):
    trained = nn.Conv3d(1, 2, (1, 3, 5))
    ModelFiles(tmp_path / "model.pt").write(trained.state_dict(), {"orientation": "SPL"})
    as_it_is = load_strictly(nn.Conv3d(1, 2, (1, 3, 5)), tmp_path / "model.pt")
    assert torch.equal(as_it_is.weight, trained.weight)
    turned = load_strictly(nn.Conv3d(1, 2, (5, 3, 1)), tmp_path / "model.pt", axes="RAS")
    # the axes S, P, L in the order L, P, S, the first two the other way round
    assert torch.equal(turned.weight, trained.weight.permute(0, 1, 4, 3, 2).flip(2, 3))


def test_of_published_weights_the_encoder_is_taken(tmp_path: Path):
    whole = SegResNetDS(init_filters=32, blocks_down=(1, 2, 2, 4, 4), out_channels=2)
    torch.save({"state_dict": whole.state_dict()}, tmp_path / "downloaded.ckpt")
    settings = read_settings(tmp_path / "downloaded.ckpt", DEFAULTS)
    loaded = load_strictly(build_feature_map(settings.encoder), tmp_path / "downloaded.ckpt", axes="RAS").state_dict()
    there = turn_kernels(whole.encoder.state_dict(), "SPL")  # CT-FM's axes
    assert all(torch.equal(value, there[key.removeprefix("network.")]) for key, value in loaded.items())
