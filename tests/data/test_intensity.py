# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""bundle/data/intensity.py: modality of real volumes, body masks and scales against plain formulas."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from bundle.data import Foregroundd, Modalityd, NormalizeByModalityd, find_volumes, read_volume
from bundle.data.intensity import _threshold
from bundle.errors import UserError, VolumeError
from tests.data.volumes import ct_phantom, ellipsoid, mr_phantom


def item(array: np.ndarray, modality: str = "") -> dict[str, Any]:
    image = MetaTensor(torch.from_numpy(array.astype(np.float32))[None], affine=torch.eye(4, dtype=torch.float64))
    return {"image": image, "name": "phantom", "modality": modality}


def with_body(array: np.ndarray, body: np.ndarray, modality: str) -> dict[str, Any]:
    return {**item(array, modality), "foreground": torch.from_numpy(body.astype(np.uint8))[None]}


def test_modality_of_every_default_volume_is_told_from_its_intensities(data_dir: Path) -> None:
    for found in find_volumes(data_dir / "volumes"):
        volume = {"image": read_volume(found.files, found.name), "modality": ""}
        assert Modalityd()(volume)["modality"] == found.name[:2].upper(), found.name


def test_tag_comes_before_intensities_and_the_option_before_the_tag() -> None:
    assert Modalityd()(item(ct_phantom(), "MR"))["modality"] == "MR"
    assert Modalityd(modality="CT")(item(mr_phantom(), "MR"))["modality"] == "CT"


def test_z_scored_mr_is_not_taken_for_ct() -> None:
    array, body = mr_phantom().astype(np.float32), ellipsoid((24, 20, 16))
    scored = (array - array[body].mean()) / array[body].std()
    assert scored.min() < -5 and Modalityd()(item(scored))["modality"] == "MR"


def test_of_several_channels_the_first_tells_the_modality() -> None:
    mr = mr_phantom().astype(np.float32)
    difference = item(mr)
    difference["image"] = torch.cat([difference["image"], difference["image"] - 900])
    assert Modalityd()(difference)["modality"] == "MR"
    assert Modalityd()({**difference, "image": difference["image"].flip(0)})["modality"] == "CT"


def test_unknown_modality_names_the_option() -> None:
    with pytest.raises(UserError, match="--modality 'PET'"):
        Modalityd(modality="PET")


@pytest.mark.parametrize(("modality", "phantom"), [("CT", ct_phantom), ("MR", mr_phantom)])
def test_foreground_is_the_body_without_a_table_and_with_its_cavities(modality: str, phantom: Any) -> None:
    size = (40, 36, 20)
    array, body = phantom(size), ellipsoid(size)
    air = array[0, 0, 0]
    array[18:22, 16:20, 8:12] = air  # a lung
    array[2:38, 1, :] = array[body].max()  # a table
    foreground = Foregroundd()(item(array, modality))["foreground"]
    assert foreground.dtype == torch.uint8 and foreground.shape == (1, *size)
    np.testing.assert_array_equal(foreground[0].numpy() > 0, body)


def test_volume_without_a_body_is_refused() -> None:
    array = np.full((8, 8, 8), -1000.0)
    array[0, 0, 0] = -999
    with pytest.raises(VolumeError, match="phantom: shows no body"):
        Foregroundd()(item(array, "CT"))


@pytest.mark.parametrize("bright", [0.1, 0.5, 0.9])
def test_threshold_of_mr_is_otsus_or_the_mean_if_that_is_lower(bright: float) -> None:
    generator = np.random.default_rng(0)
    array = np.where(generator.random((40, 36, 20)) < bright, 400, 150) + generator.normal(0, 60, (40, 36, 20))
    low, high = np.percentile(array, (0.5, 99.5))
    counts, edges = np.histogram(array.clip(low, high), bins=128)
    centres = (edges[:-1] + edges[1:]) / 2
    # Otsu: the threshold that leaves the least variance inside the two classes
    within = [sum(_scatter(counts[side], centres[side]) for side in (slice(t), slice(t, None))) for t in range(1, 128)]
    otsu = edges[1 + np.argmin(within)]
    threshold = _threshold(item(array)["image"], "MR")
    assert threshold == pytest.approx(min(otsu, array.mean()), abs=1.01 * (high - low) / 128)


def _scatter(counts: np.ndarray, centres: np.ndarray) -> float:
    mean = (counts * centres).sum() / counts.sum()
    return float((counts * (centres - mean) ** 2).sum())


def test_ct_window_is_mapped_to_minus_one_to_one() -> None:
    array = np.array([-2048, -1000, -500, 0, 250, 1000, 3071], dtype=np.float32).reshape(7, 1, 1)
    image = NormalizeByModalityd(ct_window=(-1000, 1000))(with_body(array, array > -500, "CT"))["image"]
    np.testing.assert_allclose(image.flatten().numpy(), [-1, -1, -0.5, 0, 0.25, 1, 1])


def test_mr_foreground_has_mean_zero_and_deviation_one_after_clipping() -> None:
    array, body = mr_phantom().astype(np.float64), ellipsoid((24, 20, 16))
    image = NormalizeByModalityd(mr_percentiles=(2, 98))(with_body(array, body, "MR"))["image"][0].numpy()
    low, high = np.percentile(array[body], (2, 98))
    clipped = array.clip(low, high)[body]
    inside = body & (array > low)  # below the lower percentile the background's bound applies
    expected = (array.clip(low, high) - clipped.mean()) / clipped.std()
    np.testing.assert_allclose(image[inside], expected[inside], atol=1e-4)
    assert abs(image[body].mean()) < 0.02 and abs(image[body].std() - 1) < 0.02


def test_mr_scale_does_not_depend_on_the_scanners_units() -> None:
    array, body = mr_phantom(), ellipsoid((24, 20, 16))
    one, other = (NormalizeByModalityd()(with_body(a, body, "MR"))["image"] for a in (array, 3.0 * array + 70))
    torch.testing.assert_close(one.as_tensor(), other.as_tensor(), atol=1e-4, rtol=0)


def test_mr_background_stays_a_few_deviations_below_the_foreground() -> None:
    array = mr_phantom()
    image = NormalizeByModalityd()(with_body(array, ellipsoid(array.shape), "MR"))["image"]
    assert -6 < float(image.min()) < -2


def test_without_a_floor_mr_keeps_dark_tissue_apart_down_to_the_percentile_of_the_volume() -> None:
    array = np.linspace(0, 1000, 20 * 20 * 20).reshape(20, 20, 20)
    bright = array > 800  # what Otsu's threshold leaves of a volume that is full of tissue
    images = [
        NormalizeByModalityd(mr_floor=floor)(with_body(array, bright, "MR"))["image"].numpy().ravel()
        for floor in (3.0, 5.0, None)
    ]
    deviation = np.clip(array[bright], *np.percentile(array[bright], (0.5, 99.5))).std()
    kept = [len(np.unique(image[array.ravel() < 800])) for image in images]
    for image, count, floor in zip(images, kept, (900 - 3 * deviation, 900 - 5 * deviation, 5)):
        assert count == pytest.approx((array[array < 800] > floor).sum(), rel=0.01)
        assert image.min() == pytest.approx((floor - 900) / deviation, rel=0.01)


@pytest.mark.parametrize("floor", [0, -3.0])
def test_a_floor_above_the_mean_is_refused(floor: float) -> None:
    with pytest.raises(UserError, match="--mr_floor"):
        NormalizeByModalityd(mr_floor=floor)


def test_body_without_contrast_is_refused() -> None:
    array, body = np.where(ellipsoid((8, 8, 8)), 100.0, 0.0), ellipsoid((8, 8, 8))
    with pytest.raises(VolumeError, match="is constant inside the body"):
        NormalizeByModalityd()(with_body(array, body, "MR"))


@pytest.mark.parametrize("option", ["ct_window", "mr_percentiles"])
def test_empty_range_names_the_option(option: str) -> None:
    with pytest.raises(UserError, match=option):
        NormalizeByModalityd(**{option: (50, 50)})


@pytest.mark.parametrize("modality", ["CT", "MR"])
def test_each_channel_is_normalised_by_itself(modality: str) -> None:
    generator = torch.Generator().manual_seed(0)
    channels = [scale * torch.randn(1, 6, 6, 6, generator=generator) for scale in (50.0, 700.0)]
    more = {"foreground": torch.ones(1, 6, 6, 6, dtype=torch.uint8), "modality": modality, "name": "a"}
    normalize = NormalizeByModalityd(mr_percentiles=(1, 99))
    together = normalize({"image": torch.cat(channels), **more})["image"]
    assert torch.equal(together, torch.cat([normalize({"image": channel, **more})["image"] for channel in channels]))
