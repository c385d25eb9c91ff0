# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""scripts/studies/levels.py: the probe by hand, the places of features, and the command on the real brain."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import levels as probe_levels
import pytest
import torch
from torch.nn.functional import interpolate

from bundle.networks import build_encoder

ENCODER = {"name": "SegResEncoder", "init_filters": 4, "blocks_down": [1, 1, 1], "norm": ["instance", {"affine": True}]}


def test_labels_that_the_features_tell_linearly_are_found_and_others_are_not():
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 3, (3000,), generator=generator)
    telling = torch.nn.functional.one_hot(labels, 3).double() @ torch.tensor([[1.0, 7], [-3, 0], [2, 2]]).double()
    noise = torch.randn(3000, 2, generator=generator, dtype=torch.float64)
    train, test = slice(0, 2000), slice(2000, None)
    for features, low, high in ((telling, 100, 100), (noise, 0, 45)):
        dice = probe_levels.ridge_dice((features[train], labels[train]), [(features[test], labels[test])], 2)
        assert low <= dice <= high
    swapped = torch.where(labels > 0, 3 - labels, 0)  # a test volume with other labels is scored by its own
    assert probe_levels.ridge_dice((telling[train], labels[train]), [(telling[test], swapped[test])], 2) < 1e-6


def test_a_voxel_has_the_features_of_its_cell():
    torch.manual_seed(0)
    encoder = build_encoder(**ENCODER).eval()
    image = torch.randn(1, 16, 8, 12)
    voxels = torch.ones(16, 8, 12).nonzero()
    found = probe_levels.features_at(encoder, image, voxels)
    for features, at in zip(encoder(image[None]), found, strict=True):
        nearest = interpolate(features, (16, 8, 12), mode="nearest")[0]
        assert torch.equal(at.T.reshape(nearest.shape), nearest.double())


def test_the_command_compares_trained_and_untrained(data_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    torch.manual_seed(1)
    torch.save(build_encoder(**ENCODER).network.state_dict(), tmp_path / "model.pt")
    settings = {"encoder": ENCODER, "crop_size": [16, 16, 16], "spacing": [4, 4, 4], "mr_percentiles": [0.5, 99.5]}
    settings |= {"ct_window": [-1000, 1000], "sha256": hashlib.sha256((tmp_path / "model.pt").read_bytes()).hexdigest()}
    (tmp_path / "model.json").write_text(json.dumps(settings))
    arguments = ["--weights", tmp_path / "model.pt", "--data_dir", data_dir, "--work_dir", tmp_path, "--seeds", 1]
    assert probe_levels.main([*map(str, arguments), "--samples", "3000"]) == 0
    rows = [line.split("|")[2:-1] for line in capsys.readouterr().out.splitlines() if "trained |" in line]
    assert len(rows) == 2 and rows[0] != rows[1]
    for row in rows:
        assert len(row) == 4 and all(5 < float(value) < 90 for value in row)


@pytest.mark.parametrize("missing", ["weights", "data"])
def test_what_is_missing_is_one_line_that_says_what_to_do(
    missing: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    (tmp_path / "model.json").write_text(
        json.dumps(
            {
                "encoder": ENCODER,
                "crop_size": [16, 16, 16],
                "spacing": [4, 4, 4],
                "mr_percentiles": [0.5, 99.5],
                "ct_window": [-1000, 1000],
            }
        )
    )
    torch.save(build_encoder(**ENCODER).network.state_dict(), tmp_path / "model.pt")
    weights = tmp_path / ("model.pt" if missing == "data" else "none.pt")
    arguments = ["--weights", weights, "--data_dir", tmp_path / "empty", "--work_dir", tmp_path, "--seeds", 1]
    assert probe_levels.main([*map(str, arguments)]) == 1
    (last,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert ("fetch_data.py --all" if missing == "data" else "no json beside it") in last
