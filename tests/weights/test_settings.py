# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""The json beside the weights decides; without it, the config does."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from monai.networks.nets import ResNetFeatures

from bundle.errors import UserError
from bundle.weights import ModelFiles, ModelSettings, read_settings

WRITTEN: dict[str, Any] = {
    "encoder": {"name": "VNet"},
    "crop_size": [64, 64, 32],
    "spacing": None,
    "ct_window": [-500, 500],
    "mr_percentiles": [1, 99],
    "epochs": 3,
    "sha256": "abc",
}
DEFAULTS = {**WRITTEN, "encoder": {"name": "SegResEncoder"}, "sha256": ""}


def test_the_json_beside_the_weights_wins(tmp_path: Path):
    (tmp_path / "model.json").write_text(json.dumps(WRITTEN))
    settings = read_settings(tmp_path / "model.pt", DEFAULTS)
    assert settings.encoder == {"name": "VNet"} and settings.spacing is None and settings.sha256 == "abc"
    assert (settings.crop_size, settings.ct_window, settings.mr_percentiles) == ([64, 64, 32], [-500, 500], [1, 99])


def test_without_weights_the_defaults_hold_without_a_word(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    assert read_settings(tmp_path / "model.pt", DEFAULTS).encoder == {"name": "SegResEncoder"}
    assert not caplog.records


def test_weights_without_their_json_are_warned_about(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    torch.save({"nobodys": torch.zeros(1)}, tmp_path / "model.pt")
    with caplog.at_level(logging.WARNING):
        assert read_settings(tmp_path / "model.pt", DEFAULTS).encoder == {"name": "SegResEncoder"}
    assert "no model.json" in caplog.text


def test_of_published_weights_the_card_says_what_it_knows(tmp_path: Path):
    network = ResNetFeatures("resnet10", pretrained=False, spatial_dims=3)
    torch.save(network.state_dict(), tmp_path / "model.pt")
    settings = read_settings(tmp_path / "model.pt", {**DEFAULTS, "spacing": [2, 2, 2]})
    assert (settings.encoder["name"], settings.encoder["model_name"]) == ("ResNetFeatures", "resnet10")
    assert settings.spacing is None and settings.intensity_scheme == {"kind": "z_score", "over": "nonzero"}
    assert settings.crop_size == [64, 64, 32]  # of which the card says nothing


def test_settings_by_axis_are_for_ras(tmp_path: Path):
    encoder = {"name": "DynUNet", "strides": [1, [1, 2, 2]], "kernel_size": [[1, 3, 3], 3]}
    content = {**WRITTEN, "orientation": "SPL", "spacing": [5, 1, 2], "encoder": encoder}
    (tmp_path / "model.json").write_text(json.dumps(content))
    settings = read_settings(tmp_path / "model.pt", DEFAULTS)
    assert (settings.spacing, settings.crop_size) == ([2, 1, 5], [32, 64, 64])
    assert settings.encoder == {"name": "DynUNet", "strides": [1, [2, 2, 1]], "kernel_size": [[3, 3, 1], 3]}


@pytest.mark.parametrize(
    ("text", "message"),
    [("{", "no readable json"), ("[]", "holds no settings"), ('{"encoder": {}}', "lacks crop_size, spacing")],
)
def test_a_json_that_cannot_be_used_is_named(tmp_path: Path, text: str, message: str):
    (tmp_path / "model.json").write_text(text)
    with pytest.raises(UserError, match=message) as error:
        read_settings(tmp_path / "model.pt", DEFAULTS)
    assert "model.json" in str(error.value)


def test_unknown_keys_stay_and_missing_ones_have_defaults(tmp_path: Path):
    (tmp_path / "model.json").write_text(json.dumps({"encoder": {"name": "VNet"}, "licence": "CC0", "later": [1]}))
    settings = ModelFiles(tmp_path / "model.pt").read_settings()
    assert settings is not None and settings.encoder == {"name": "VNet"} and settings.sha256 == ""
    assert settings.content == {"encoder": {"name": "VNet"}, "licence": "CC0", "later": [1]}
    assert settings.spacing is ModelSettings().spacing is None and settings.ct_window == ModelSettings().ct_window


def test_without_a_json_there_are_no_settings(tmp_path: Path):
    assert ModelFiles(tmp_path / "model.pt").read_settings() is None


@pytest.mark.parametrize("encoder", ["SegResEncoder", {"init_filters": 4}])
def test_an_encoder_without_its_name_is_one_line(encoder: Any, tmp_path: Path):
    (tmp_path / "model.json").write_text(json.dumps({"encoder": encoder}))
    with pytest.raises(UserError, match=r"has no encoder of the form .*: copy it again"):
        ModelFiles(tmp_path / "model.pt").read_settings()


def test_axes_that_are_none_name_the_json(tmp_path: Path):
    (tmp_path / "model.json").write_text(json.dumps({**WRITTEN, "orientation": "XYZ"}))
    with pytest.raises(UserError, match=r"model.json: orientation 'XYZ' is not known: give"):
        ModelFiles(tmp_path / "model.pt").describe()
