# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""Intensities on the scales of other people's weights, against plain numpy and MONAI's own transforms."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import NormalizeIntensity, ScaleIntensityRange

from bundle.data import NormalizeByModalityd, NormalizeBySchemed, normalization
from bundle.errors import UserError, VolumeError

RANGE = {"kind": "range", "window": [-1024, 2048], "to": [0, 1]}


def scan(channels: int = 1) -> MetaTensor:
    """Air of value 0 around a body, with values far outside of every window."""
    image = torch.zeros(channels, 9, 8, 7)
    generator = torch.Generator().manual_seed(0)
    image[:, 2:7, 1:6, 2:6] = torch.randn(channels, 5, 5, 4, generator=generator) * 1500 + 300
    image[:, 4, 3, 3] = 0  # a hole in the body
    return MetaTensor(image, affine=torch.diag(torch.tensor([2.0, 1.0, 3.0, 1.0])))


def normalized(scheme, image=None):
    return NormalizeBySchemed(scheme=scheme)({"image": scan() if image is None else image, "name": "scan"})


def test_range_is_monais_scale_intensity_range():
    expected = ScaleIntensityRange(-1024, 2048, 0, 1, clip=True)(scan())
    assert torch.allclose(normalized(RANGE)["image"], expected, atol=1e-6)


@pytest.mark.parametrize("nonzero", [False, True])
def test_z_score_is_monais_normalize_intensity(nonzero: bool):
    ours = normalized({"kind": "z_score", "over": "nonzero" if nonzero else "volume"})["image"]
    theirs = NormalizeIntensity(nonzero=nonzero)(scan())
    inside = scan() != 0 if nonzero else torch.ones_like(ours) > 0  # MONAI leaves zeros alone
    assert torch.allclose(ours[inside], theirs[inside], atol=1e-5)


def test_z_score_over_the_box_of_what_is_not_zero_counts_the_holes_inside_but_not_the_air_around():
    box = scan().numpy()[:, 2:7, 1:6, 2:6]
    expected = (scan().numpy() - box.mean()) / box.std()
    assert np.allclose(normalized({"kind": "z_score", "over": "nonzero_box"})["image"], expected, atol=1e-5)


def test_statistics_are_nnunets_ct_normalization():
    scheme = {"kind": "statistics", "window": [-900, 1200], "mean": 80.0, "deviation": 210.0}
    expected = (np.clip(scan().numpy(), -900, 1200) - 80.0) / 210.0
    assert np.allclose(normalized(scheme)["image"], expected, atol=1e-5)


@pytest.mark.parametrize(
    "scheme", [RANGE, {"kind": "z_score"}, {"kind": "statistics", "window": [-1000, 2000], "mean": 3, "deviation": 7}]
)
def test_offset_and_scale_lead_back_to_the_files_units(scheme):
    item = normalized(scheme, scan().clamp(-900, 1900))
    back = item["image"] * item["intensity"]["scale"] + item["intensity"]["offset"]
    assert torch.allclose(back, scan().clamp(-900, 1900), atol=1e-2)


def test_each_channel_may_have_a_scheme_of_its_own():
    image = normalized([RANGE, {"kind": "z_score"}], scan(2))["image"]
    assert torch.allclose(image[:1], ScaleIntensityRange(-1024, 2048, 0, 1, clip=True)(scan(2)[:1]), atol=1e-6)
    assert torch.allclose(image[1:], NormalizeIntensity()(scan(2)[1:]), atol=1e-5)
    assert isinstance(image, MetaTensor) and torch.equal(image.affine, scan().affine)


def test_another_number_of_channels_than_of_schemes_is_said():
    with pytest.raises(
        VolumeError, match=r"3 channels, but there are 2 intensity schemes; .*settings#intensity_scheme"
    ):
        normalized([RANGE, RANGE], scan(3))


def test_a_constant_volume_is_left_out_by_name():
    with pytest.raises(VolumeError, match="constant"):
        normalized({"kind": "z_score"}, torch.full((1, 4, 4, 4), 7.0))
    with pytest.raises(VolumeError, match="constant"):
        normalized({"kind": "z_score", "over": "nonzero_box"}, torch.zeros(1, 4, 4, 4))


@pytest.mark.parametrize(
    ("scheme", "message"),
    [
        ({"kind": "rnage"}, "'rnage' is not known: choose one of range, z_score, statistics"),
        ({"kind": "range", "window": [0, 1]}, "lacks to"),
        ({"kind": "range", "window": [1, 0], "to": [0, 1]}, "the lower one first"),
        ({"kind": "statistics", "window": [0, 1]}, "lacks mean, deviation"),
        ({"kind": "z_score", "over": "body"}, "'body' is not known: choose volume, nonzero, nonzero_box"),
    ],
)
def test_a_scheme_that_does_not_fit_is_one_line(scheme, message):
    with pytest.raises(UserError, match=message):
        NormalizeBySchemed(scheme=scheme)


def test_without_a_scheme_it_is_the_projects_own_way():
    ours = normalization(scheme=None, ct_window=(-100, 300), mr_percentiles=(1, 99))
    assert isinstance(ours, NormalizeByModalityd)
    assert ours.ct_window == (-100, 300) and ours.mr_percentiles == (1, 99)
    assert isinstance(normalization(scheme=RANGE, ct_window=(-100, 300)), NormalizeBySchemed)
