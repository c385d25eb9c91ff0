# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""Weights for volumes with other axes than RAS are turned together with what `model.json` says by axis."""

from __future__ import annotations

from pathlib import Path

import torch

from bundle.networks import build_encoder
from bundle.weights import ModelFiles
from bundle.weights.orientation import turn_settings

ENCODER = {
    "name": "PlainConvUNet",
    "n_stages": 2,
    "features_per_stage": [3, 4],
    "kernel_sizes": [[1, 3, 3], [3, 3, 1]],  # S, P, L
    "strides": [1, [1, 2, 1]],
    "n_conv_per_stage": [1, 1],
}


def test_what_slices_first_weights_say_of_a_volume_they_say_of_it_in_ras(tmp_path: Path):
    encoder = build_encoder(**ENCODER)
    about = {"encoder": encoder.settings, "orientation": "SPL", "spacing": [5.0, 1.0, 0.5], "crop_size": [2, 8, 4]}
    about["levels"] = [{"channels": 4, "stride": [1, 2, 1]}]
    files = ModelFiles(tmp_path / "model.pt")
    files.write(encoder.network_state_dict(), about)
    found = files.describe()
    assert found is not None and found.content["orientation"] == "RAS"
    assert (found.spacing, found.crop_size) == ([0.5, 1.0, 5.0], [4, 8, 2])
    assert found.encoder["kernel_sizes"] == [[3, 3, 1], [1, 3, 3]] and found.encoder["strides"] == [1, [1, 2, 1]]
    assert found.content["levels"] == [{"channels": 4, "stride": [1, 2, 1]}]
    turned = build_encoder(**found.encoder)
    turned.network.load_state_dict(turned.network.state_dict() | files.read_encoder())
    volume = torch.randn(1, 1, 4, 7, 6)  # R, A, S; an odd number along the mirrored stride, so turning is exact
    with torch.no_grad():
        expected = [
            level.permute(0, 1, 4, 3, 2).flip(2, 3) for level in encoder(volume.flip(2, 3).permute(0, 1, 4, 3, 2))
        ]
        for level, same in zip(turned(volume), expected, strict=True):
            torch.testing.assert_close(level, same, rtol=1e-5, atol=1e-5)


def test_a_null_spacing_stays(tmp_path: Path):
    files = ModelFiles(tmp_path / "model.pt")
    files.write({"weight": torch.zeros(1)}, {"orientation": "SPL", "spacing": None})
    found = files.describe()
    assert found is not None and found.spacing is None and found.content["orientation"] == "RAS"


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
