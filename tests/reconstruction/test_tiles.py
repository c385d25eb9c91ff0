# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from bundle.errors import UserError
from bundle.reconstruction.error_table import error_row, error_text

from .examples import Answer, flipped_affine, prepared, smooth_body, tiles


@pytest.fixture
def volume(tmp_path: Path):
    """No axis is a whole number of windows long."""
    return prepared(tmp_path, smooth_body((40, 36, 44), flipped_affine()), flipped_affine())


def test_hidden_voxels_are_the_networks_and_visible_ones_the_volumes(volume):
    found = tiles(Answer(lambda image: image + 0.5))(volume)
    image = volume.image.as_tensor()
    torch.testing.assert_close(found.image, torch.where(found.hidden, image + 0.5, image))
    assert 0.4 < found.hidden.float().mean() < 0.7
    assert torch.equal(found.hidden, found.first_hidden)


@pytest.mark.parametrize("overlap", [0.0, 0.25])
def test_complementary_passes_reconstruct_the_whole_volume(volume, overlap):
    found = tiles(Answer(lambda image: image + 0.5), complementary=True, overlap=overlap)(volume)
    assert found.hidden.all() and not found.first_hidden.all()
    torch.testing.assert_close(found.image, volume.image.as_tensor() + 0.5, atol=1e-4, rtol=0)


def test_no_voxel_is_reconstructed_by_a_pass_that_saw_it(volume):
    class Cheat(Answer):
        """Marks the voxels that it may see."""

        def forward(self, image, *, visible, hidden, **_):
            seen = torch.zeros_like(image, dtype=torch.bool) | visible.repeat_interleave(4, 2).repeat_interleave(
                4, 3
            ).repeat_interleave(4, 4)
            return {"reconstruction": torch.where(seen, 1e6, 0.0), "visible": visible, "hidden": hidden}

    for options in ({}, {"complementary": True}, {"complementary": True, "overlap": 0.5}):
        found = tiles(Cheat(), **options)(volume)
        assert found.image[found.hidden].abs().max() == 0


def test_padding_is_not_reconstructed(tmp_path: Path):
    small = prepared(tmp_path, smooth_body((10, 36, 44), flipped_affine()), flipped_affine())
    assert not small.valid.all()
    found = tiles(Answer(lambda image: image + 1), complementary=True)(small)
    assert not (found.hidden & ~small.valid).any()
    torch.testing.assert_close(found.image[~small.valid], small.image.as_tensor()[~small.valid])


def test_the_errors_are_in_the_units_of_the_file(volume):
    found = tiles(Answer(lambda image: image + 0.02))(volume)  # 0.02 of a window 2 wide: 20 of 2000 HU
    row = error_row(volume, found)
    assert row["unit"] == "HU" and row["mae"] == pytest.approx(20, rel=1e-3)
    assert row["mae_normalised"] == pytest.approx(0.02, rel=1e-3) and row["loss"] == pytest.approx(0.0004, rel=1e-3)
    assert row["mae_foreground"] == pytest.approx(20, rel=1e-3) and row["mae_air"] == pytest.approx(20, rel=1e-3)
    # 0 of the prepared volume is 0 HU: the error is what the volume itself measures
    clipped = volume.in_units(volume.image.as_tensor())[found.hidden].numpy()
    assert row["mae_zero_predictor"] == pytest.approx(np.abs(clipped).mean(), rel=1e-4)
    assert 20 < row["mae_mean_predictor"] < 1000
    assert "HU" in error_text([row]) and "volume.nii.gz" in error_text([row])


def test_the_mean_predictor_is_the_mean_of_what_the_window_shows(tmp_path: Path):
    body = prepared(tmp_path, smooth_body((16, 16, 16), flipped_affine()), flipped_affine(), ct_window=[-2000, 2000])
    assert body.image.shape[1:] == (16, 16, 16)  # one window
    found = tiles(Answer())(body)
    seen = body.valid & ~found.hidden
    torch.testing.assert_close(found.mean_predictor[found.hidden].unique(), body.image.as_tensor()[seen].mean()[None])


def test_overlap_needs_complementary_masks():
    with pytest.raises(UserError, match="--complementary True"):
        tiles(Answer(), overlap=0.25)
    with pytest.raises(UserError, match="--overlap 1"):
        tiles(Answer(), overlap=1.0, complementary=True)
