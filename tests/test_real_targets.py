# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""The scale of the reconstruction loss on real CT and MR: what a network that predicts nothing loses."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from monai.transforms import Compose

from bundle.data import CropDataset, RandForegroundCropd, VolumeSet
from bundle.losses import ReconstructionLoss
from bundle.masking import AdaptiveBlocks, MaskSampler
from tests.data.volumes import preparation

CROP = (32, 32, 32)


@pytest.fixture(scope="module")
def batch(data_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, torch.Tensor]:
    """Two crops of each of five real volumes, at 3 mm, and their masks."""
    folder = tmp_path_factory.mktemp("volumes")
    for name in ("ct_body_totalseg", "ct_spine_tptbox", "mr_body_totalseg", "mr_spine_tptbox", "mr_brain_mni152"):
        (folder / f"{name}.nii.gz").symlink_to(data_dir / f"volumes/{name}.nii.gz")
    volumes = VolumeSet(
        dataset_dir=folder,
        transform=preparation(CROP, spacing=[3, 3, 3]),
        cache_dir=tmp_path_factory.mktemp("cache"),
        val_fraction=0,
    )
    assert not volumes.skipped
    keys = ["image", "foreground", "valid"]
    crops = CropDataset(data=volumes.training, transform=Compose([RandForegroundCropd(keys, spatial_size=CROP)]))
    drawn = [crops[draw] for draw in range(2 * len(crops))]
    batch = {key: torch.stack([crop[key] for crop in drawn]) for key in keys}
    mask = MaskSampler(rule=AdaptiveBlocks(), cell=(16, 16, 16))(batch["valid"], torch.arange(len(drawn)))
    return {**batch, "hidden": mask.hidden, "reconstruction": torch.zeros_like(batch["image"])}


@pytest.mark.parametrize("target", ["per_patch", "per_volume"])
def test_predicting_zero_loses_about_one_of_a_normalised_target(batch: dict[str, torch.Tensor], target: str) -> None:
    loss, terms = ReconstructionLoss(target=target, visible_weight=0.0)(**batch)
    assert 0.2 <= loss <= 1.2
    with torch.no_grad():  # in validation the loss is the mean over crops, as the terms are
        loss, _ = ReconstructionLoss(target=target, visible_weight=0.0)(**batch)
    assert terms["zero_predictor"] == loss
    assert terms["zero_predictor_raw"].isfinite()


def test_air_dominates_the_raw_target_but_not_the_normalised_one(batch: dict[str, torch.Tensor]) -> None:
    _, raw = ReconstructionLoss(target="none", visible_weight=0.0)(**batch)
    _, normalised = ReconstructionLoss(target="per_patch", visible_weight=0.0)(**batch)
    shares = [t["reconstruction_air"] / t["reconstruction_foreground"] for t in (raw, normalised)]
    assert shares[0] > 4 and shares[1] < 2
