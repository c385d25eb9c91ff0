# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""bundle/data/geometry.py: voxel size, padding and what is kept."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from bundle.data import OptionalSpacingd, PadToCropd, ToPlainTensorsd, crop_size
from bundle.errors import UserError, VolumeError
from tests.data.volumes import ct_phantom


def item(
    spacing: tuple[float, float, float] = (0.5, 1.0, 4.0), shape: tuple[int, ...] = (24, 20, 16)
) -> dict[str, Any]:
    affine = torch.diag(torch.tensor([*spacing, 1.0], dtype=torch.float64))
    image = MetaTensor(torch.from_numpy(ct_phantom(shape).astype(np.float32))[None], affine=affine)
    return {"image": image, "foreground": (image > -500).to(torch.uint8), "name": "phantom", "modality": "CT"}


def test_spacing_of_none_changes_nothing() -> None:
    data = item()
    for pixdim in (None, [None, None, None]):
        assert OptionalSpacingd(pixdim=pixdim)(data)["image"] is data["image"]


def test_axis_of_none_keeps_its_own_spacing_and_voxels() -> None:
    image = OptionalSpacingd(pixdim=[None, 2.0, 2.0])(item(shape=(24, 21, 16)))["image"]
    np.testing.assert_allclose(image.pixdim.numpy(), [0.5, 2.0, 2.0])
    # MONAI puts the corner voxels' centres onto each other: (n - 1) * old / new + 1 voxels
    assert image.shape == (1, 24, 11, 31)


def test_resampling_to_more_than_the_memory_is_refused_before_it_is_asked_for() -> None:
    with pytest.raises(VolumeError, match=r"^phantom: would take .* GiB \(1 x 12000 x 20000 x 64000 voxels\)"):
        OptionalSpacingd(pixdim=[1e-3] * 3)(item())


def test_resampling_interpolates_linearly_between_voxels() -> None:
    ramp = torch.arange(16, dtype=torch.float32).expand(1, 24, 20, 16)
    image = OptionalSpacingd(pixdim=[None, None, 2.0])({"image": MetaTensor(ramp, affine=item()["image"].affine)})
    np.testing.assert_allclose(image["image"][0, 3, 4].numpy(), np.arange(31) / 2, atol=1e-4)


@pytest.mark.parametrize("pixdim", [[1, 1], [1, 0, 1], [1, -1, None]])
def test_unusable_spacing_names_the_option(pixdim: list[float | None]) -> None:
    with pytest.raises(UserError, match="--spacing"):
        OptionalSpacingd(pixdim=pixdim)


def test_padding_reaches_the_crop_and_is_air_that_is_neither_valid_nor_body() -> None:
    data = item()
    padded = PadToCropd(spatial_size=[32, 16, 32])(data)
    assert padded["image"].shape == padded["valid"].shape == padded["foreground"].shape == (1, 32, 20, 32)
    inside = (slice(None), slice(4, 28), slice(None), slice(8, 24))
    torch.testing.assert_close(padded["image"][inside].as_tensor(), data["image"].as_tensor())
    valid = torch.zeros(1, 32, 20, 32)
    valid[inside] = 1
    assert torch.equal(torch.as_tensor(padded["valid"]).float(), valid)
    outside = valid == 0
    assert (padded["image"].as_tensor()[outside] == -1000).all()
    assert not padded["foreground"].as_tensor()[outside].any()
    assert padded["foreground"].sum() == data["foreground"].sum()


def test_kept_tensors_are_plain_with_the_spacing_in_millimetres() -> None:
    kept = ToPlainTensorsd()(PadToCropd(spatial_size=[16, 16, 16])(item()))
    assert set(kept) == {"image", "foreground", "valid", "spacing", "modality"}
    assert all(type(kept[key]) is torch.Tensor for key in kept if key != "modality")
    assert kept["image"].dtype == torch.float32 and kept["valid"].dtype == kept["foreground"].dtype == torch.uint8
    torch.testing.assert_close(kept["spacing"], torch.tensor([0.5, 1.0, 4.0]))


@pytest.mark.parametrize("size", [[33, 32, 32], [32, 32], [0, 32, 32], [16, 16, 16]])
def test_crop_that_the_encoder_cannot_take_names_the_option(size: list[int]) -> None:
    with pytest.raises(UserError, match="--crop_size"):
        crop_size(size, [16, 16, 16])


def test_crop_of_whole_cells_is_taken() -> None:
    assert crop_size([64, 32, 16], [16, 16, 8]) == (64, 32, 16)


def test_a_volume_of_less_than_two_cells_is_left_out_with_its_size() -> None:
    pad = PadToCropd(spatial_size=(48, 48, 48), cell=(16, 16, 16))
    small = item(shape=(11, 15, 15))
    with pytest.raises(VolumeError, match="11 x 15 x 15 voxels, less than two cells"):
        pad({**small, "name": "small.nii.gz", "foreground": small["image"] > 0})
    enough = item(shape=(11, 27, 32))
    pad({**enough, "name": "enough.nii.gz", "foreground": enough["image"] > 0})


def test_each_channel_is_padded_with_its_own_lowest_value() -> None:
    image = MetaTensor(torch.stack([torch.full((4, 4, 4), value) for value in (-3.0, 5.0)]))
    item = PadToCropd(spatial_size=(8, 4, 4))({"image": image, "name": "a"})
    assert item["image"].shape == (2, 8, 4, 4) and item["valid"].shape == (1, 8, 4, 4)
    assert (item["image"][0] == -3).all() and (item["image"][1] == 5).all()


@pytest.mark.parametrize("pixdim", [[1.5, 1.5, 1.5], [0.9, 3.0, 0.55], [None, 2.0, 4.1], [2.0, None, None]])
@pytest.mark.parametrize("mode", ["bilinear", "nearest"])
@pytest.mark.parametrize("planes", [1, 7])
def test_large_volumes_are_resampled_by_slabs_as_small_ones_are_at_once(pixdim, mode, planes, monkeypatch):
    torch.manual_seed(0)
    affine = torch.eye(4, dtype=torch.float64)
    affine[:3, :3] = torch.linalg.qr(torch.randn(3, 3, dtype=torch.float64))[0] * torch.tensor([0.8, 1.1, 1.3])
    affine[:3, 3] = torch.tensor([-170.3, 12.9, 801.7])
    values = torch.randint(0, 5, (2, 13, 17, 22)).byte() if mode == "nearest" else torch.randn(2, 13, 17, 22)
    image = MetaTensor(values, affine=affine, meta={"own_grid": 1})
    transform = OptionalSpacingd(pixdim=pixdim, mode=mode)
    whole = transform({"image": image})["image"]
    monkeypatch.setattr("bundle.data.geometry._WHOLE", 0)
    monkeypatch.setattr("bundle.data.geometry._PLANES", planes)
    slabs = transform({"image": image})["image"]
    assert slabs.shape == whole.shape and slabs.dtype == whole.dtype and slabs.meta["own_grid"] == 1
    assert torch.allclose(slabs.affine, whole.affine, atol=1e-9)
    assert torch.allclose(slabs.pixdim, whole.pixdim) and slabs.affine.dtype == whole.affine.dtype
    assert (slabs - whole).abs().max() <= (1e-6 if mode == "bilinear" else 0)
