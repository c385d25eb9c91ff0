# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""Weights for volumes with other axes are turned together with what `model.json` says by axis."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser

from bundle.networks import Encoder, build_encoder
from bundle.tasks.detection.panels import _turned
from bundle.transfer import PretrainedSettings, Transfer, load_encoder
from bundle.weights import ModelFiles, ordered_axes, turn_array
from bundle.weights.orientation import turn_settings

ENCODER = {
    "name": "PlainConvUNet",
    "n_stages": 2,
    "features_per_stage": [3, 4],
    "kernel_sizes": [[1, 3, 3], [3, 3, 1]],  # S, P, L
    "strides": [1, [1, 2, 1]],
    "n_conv_per_stage": [1, 1],
}


def test_what_slices_first_weights_say_of_a_volume_they_say_of_it_in_the_order_x_y_z(tmp_path: Path):
    encoder = build_encoder(**ENCODER)
    about = {"encoder": encoder.settings, "orientation": "SPL", "spacing": [5.0, 1.0, 0.5], "crop_size": [2, 8, 4]}
    about["levels"] = [{"channels": 4, "stride": [1, 2, 1]}]
    files = ModelFiles(tmp_path / "model.pt")
    files.write(encoder.network_state_dict(), about)
    found = files.describe()
    assert found is not None and found.orientation == "LPS"
    assert (found.spacing, found.crop_size) == ([0.5, 1.0, 5.0], [4, 8, 2])
    assert found.encoder["kernel_sizes"] == [[3, 3, 1], [1, 3, 3]] and found.encoder["strides"] == [1, [1, 2, 1]]
    assert found.content["levels"] == [{"channels": 4, "stride": [1, 2, 1]}]
    turned = build_encoder(**found.encoder)
    turned.network.load_state_dict(turned.network.state_dict() | files.read_encoder(found.orientation))
    volume = torch.randn(1, 1, 4, 6, 6)  # L, P, S
    with torch.no_grad():
        expected = [level.permute(0, 1, 4, 3, 2) for level in encoder(volume.permute(0, 1, 4, 3, 2))]
        for level, same in zip(turned(volume), expected, strict=True):
            torch.testing.assert_close(level, same, rtol=1e-5, atol=1e-5)


RESENC = {
    "name": "ResidualEncoderUNet",
    "n_stages": 3,
    "features_per_stage": [3, 4, 5],
    "kernel_sizes": [[3, 3, 3]] * 3,
    "strides": [1, 2, 2],
    "n_blocks_per_stage": [1, 1, 1],
    "n_conv_per_stage_decoder": [1, 1],
}


@pytest.fixture
def resenc(tmp_path: Path) -> tuple[Encoder, Path]:
    """A network of residual blocks with pooled skips for volumes with the axes S, P, L, and its file."""
    torch.manual_seed(0)
    encoder = build_encoder(**RESENC)
    content = {"encoder": encoder.settings, "orientation": "SPL", "crop_size": [8, 8, 8], "spacing": [1, 1, 1]}
    content |= {"ct_window": [-1000, 1000], "mr_percentiles": [0.5, 99.5]}
    ModelFiles(tmp_path / "model.pt").write(encoder.network_state_dict(), content)
    return encoder, tmp_path / "model.pt"


def features(encoder: Encoder, volume: torch.Tensor) -> list[torch.Tensor]:
    with torch.no_grad():
        return list(encoder(volume))


def loaded(way: str, file: Path) -> Encoder:
    settings = PretrainedSettings(file, encoder={})
    made = build_encoder(**settings.encoder)
    if way == "fine-tuning":
        Transfer(made.network, file, encoder=settings.encoder, axes=settings.orientation)
    else:
        load_encoder(made.network, file, axes=settings.orientation)
    return made


@pytest.mark.parametrize("way", ["fine-tuning", "Python"])
def test_pooled_skips_give_the_features_of_the_source(way: str, resenc: tuple[Encoder, Path], caplog):
    volume = torch.randn(1, 1, 8, 16, 8)  # L, P, S
    expected = [level.permute(0, 1, 4, 3, 2) for level in features(resenc[0], volume.permute(0, 1, 4, 3, 2))]
    for level, same in zip(features(loaded(way, resenc[1]), volume), expected, strict=True):
        torch.testing.assert_close(level, same, rtol=1e-4, atol=1e-5)
    assert "lie beside each other" not in caplog.text


def test_mirrored_axes_are_said_to_change_what_pooled_skips_give(resenc: tuple[Encoder, Path], caplog):
    encoder, file = resenc
    turned = build_encoder(**RESENC)
    load_encoder(turned.network, file)  # for RAS
    volume = torch.randn(1, 1, 8, 8, 8)
    mirrored = features(encoder, volume.flip(2, 3).permute(0, 1, 4, 3, 2))
    assert not torch.allclose(features(turned, volume)[2], mirrored[2].permute(0, 1, 4, 3, 2).flip(2, 3), atol=1e-2)
    assert "Volumes with axes LPS would keep them" in caplog.text


@pytest.mark.parametrize(("config", "option", "place"), [
    ("train", "init_from", 1), ("finetune_segmentation", "pretrained", 2), ("finetune_classification", "pretrained", 2),
    ("finetune_detection", "pretrained", 2), ("inference", "weights", 2),
])  # fmt: skip
@pytest.mark.parametrize("axes", ["LPS", "RAS"])
def test_volumes_get_the_axes_of_the_weights(
    config: str, option: str, place: int, axes: str, resenc: tuple[Encoder, Path]
):
    file = resenc[1]
    if axes == "RAS":
        about = ModelFiles(file).read_settings()
        assert about is not None
        ModelFiles(file).write(resenc[0].network_state_dict(), {**about.content, "orientation": "RAS"})
    parser = ConfigParser(ConfigParser.load_config_file(f"configs/{config}.yaml"))
    parser[option] = str(file)
    transforms = "preprocessing#transforms" if config == "inference" else "prepare#transforms"
    assert parser.get_parsed_content(f"{transforms}#{place}").ornt_transform.axcodes == axes
    written = "network#axes" if config == "inference" else "model_settings#orientation"
    assert parser.get_parsed_content(written) == axes


def test_from_scratch_volumes_have_the_axes_ras():
    assert PretrainedSettings(None, encoder={}).orientation == "RAS"


@pytest.mark.parametrize("axes", ["RAS", "LPS", "SPL"])
def test_boxes_are_turned_as_their_volume_is(axes: str):
    volume = np.zeros((5, 6, 7))
    volume[1:3, 2:6, 0:4] = 1
    box = np.array([[1, 2, 0, 3, 6, 4]])
    low, high = _turned(box, volume.shape, axes).reshape(2, 3)
    turned = turn_array(volume, axes)
    assert turned.sum() == turned[tuple(slice(*ends) for ends in zip(low, high, strict=True))].sum() == volume.sum()


def test_axes_keep_their_directions_in_the_order_x_y_z():
    assert [ordered_axes(axes) for axes in ("SPL", "SAR", "RAS", "LPS", "IRA")] == ["LPS", "RAS", "RAS", "LPS", "RAI"]


def test_a_null_spacing_stays(tmp_path: Path):
    files = ModelFiles(tmp_path / "model.pt")
    files.write({"weight": torch.zeros(1)}, {"orientation": "SPL", "spacing": None})
    found = files.describe()
    assert found is not None and found.spacing is None and found.orientation == "LPS"


def test_arguments_by_stage_and_axis_of_any_encoder_are_turned():
    encoder = {
        "name": "DynUNet",
        "kernel_size": [[1, 3, 3], 3],
        "strides": [1, [1, 2, 2]],
        "upsample_kernel_size": [[1, 2, 2]],
    }
    turned = turn_settings({"orientation": "SPL", "encoder": encoder})["encoder"]
    assert turned["kernel_size"] == [[3, 3, 1], 3] and turned["strides"] == [1, [2, 2, 1]]
    assert turned["upsample_kernel_size"] == [[2, 2, 1]]
    other = {"name": "SegResNetDS", "resolution": [3, 1, 2], "kernel_size": 3}
    assert turn_settings({"orientation": "SPL", "encoder": other})["encoder"] == {**other, "resolution": [2, 1, 3]}
    assert (
        turn_settings({"orientation": "SPL", "encoder": {**other, "resolution": None}})["encoder"]["resolution"] is None
    )
