# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch

from bundle.data import PreparedVolume
from bundle.losses import Histogram, ReconstructionLoss
from bundle.stores.plain_store import PlainStore
from bundle.training import TargetRange

SIZE = (16, 16, 16)


def loss(target: str = "none", histogram: Histogram | None = None) -> ReconstructionLoss:
    return ReconstructionLoss(target=target, histogram=histogram)


@pytest.fixture
def said(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    """What is logged of volumes with these intensities; every second voxel is one of the background."""
    store = PlainStore(tmp_path)

    def said(reconstruction: ReconstructionLoss, *images: tuple[str, torch.Tensor]) -> str:
        volumes = []
        for name, image in images:
            ones = torch.ones(1, *SIZE, dtype=torch.uint8)
            valid = ones.clone()
            valid[:, 8:] = 0  # padding, however dark
            store.write(name, {"image": torch.where(valid > 0, image, -50.0), "valid": valid, "foreground": ones})
            volumes.append(PreparedVolume(name, store, name, name[:2], SIZE))
        caplog.clear()
        caplog.set_level(logging.INFO, logger="bundle")
        TargetRange(reconstruction=reconstruction, volumes=volumes, crop_size=SIZE)._report()
        return caplog.text

    return said


def spread(low: float, high: float) -> torch.Tensor:
    return torch.linspace(low, high, 16).expand(1, *SIZE)


def test_dark_tissue_beyond_the_histogram_is_told_with_the_range_that_covers_it(said):
    text = said(loss(histogram=Histogram()), ("CT", spread(-1, 1)), ("MR 1", spread(-2, 2)), ("MR 2", spread(-6.4, 2)))
    # 7 of the 16 intensities lie below -3, each in a bin of its own: 6 of 32 of the voxels of both volumes
    assert "MR: 19% of the voxels lie beyond" in text and "most of them in MR 2" in text and "CT:" not in text
    assert "histogram#low -7 " in text and "histogram#high 3 " in text
    assert "histogram#bins 53 " in text and "decoder#channels 53" in text
    assert said(loss(histogram=Histogram(low=-7, high=3, bins=53)), ("MR 2", spread(-6.4, 2))) == ""


def test_a_background_of_one_value_is_no_reason_to_warn(said):
    image = spread(-2, 2).clone()
    image[..., :6] = -6
    assert said(loss(histogram=Histogram()), ("MR", image)) == ""


def test_it_looks_at_no_volume_where_there_is_no_histogram_of_prepared_intensities(said):
    for reconstruction in (loss(), loss(target="per_volume", histogram=Histogram())):
        assert said(reconstruction, ("MR", spread(-9, 2))) == ""


def test_a_volume_that_cannot_be_read_is_left_to_the_training(said, tmp_path: Path):
    gone = PreparedVolume("gone", PlainStore(tmp_path / "empty"), "gone", "MR", SIZE)
    TargetRange(reconstruction=loss(histogram=Histogram()), volumes=[gone], crop_size=SIZE)._report()
