# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""A decoder's way from pre-training to fine-tuning, through the configs as a user runs them."""

from __future__ import annotations

import csv
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from monai.bundle import ConfigWorkflow

from tests.tiny_run import DEV, ROOT, TINY, TRAIN, bundle_root


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory: pytest.TempPathFactory, data_dir: Path) -> Path:
    """The folder of a run that has published its weights."""
    root = bundle_root(tmp_path_factory.mktemp("pretraining"), data_dir)
    flow = ConfigWorkflow([TRAIN, DEV], workflow_type="train", run_id="training", bundle_root=str(root), **TINY)
    flow.initialize()
    crop = next(iter(flow.parser.get_parsed_content("train#dataloader")))
    image, clean = crop["image"].flatten(), crop["clean"].flatten()
    assert not torch.equal(image, clean)
    assert torch.corrcoef(torch.stack([image, clean]))[0, 1] > 0.5  # other intensities, the same anatomy
    assert "clean" not in next(iter(flow.parser.get_parsed_content("validate#dataloader")))
    flow.run()
    flow.finalize()
    return root


def test_fine_tuning_starts_from_encoder_and_decoder(pretrained: Path, data_dir: Path):
    image = nibabel.load(data_dir / "volumes/mr_spine_tptbox.nii.gz")
    for folder in ("imagesTr", "labelsTr"):
        (pretrained / "data/labelled" / folder).mkdir(parents=True)
    for name in ("a", "b"):
        (pretrained / f"data/labelled/imagesTr/{name}.nii.gz").symlink_to(data_dir / "volumes/mr_spine_tptbox.nii.gz")
        bright = (image.get_fdata() > np.quantile(image.get_fdata(), 0.9)).astype(np.uint8)
        nibabel.save(nibabel.Nifti1Image(bright, image.affine), pretrained / f"data/labelled/labelsTr/{name}.nii.gz")
    flow = ConfigWorkflow(
        str(ROOT / "configs/finetune_segmentation.yaml"),
        workflow_type="train",
        run_id="training",
        bundle_root=str(pretrained),
        classes={"bright": 1},
        crop_size=[32, 32, 32],
        val_fraction=0.5,
        epochs=1,
        steps_per_epoch=1,
        batch_size=1,
        num_workers=0,
        device="cpu",
        warmup_epochs=0.5,
    )
    flow.initialize()
    network = flow.parser.get_parsed_content("transfer").network.state_dict()
    models = pretrained / "models"
    encoder, decoder = (torch.load(models / f"{name}.pt", weights_only=True) for name in ("model", "model_decoder"))
    decoder = {key: value for key, value in decoder.items() if key.startswith("up_layers.") and "head" not in key}
    assert all(torch.equal(network[f"encoder.{key}"], value) for key, value in encoder.items())
    assert all(torch.equal(network[key], value) for key, value in decoder.items())
    assert {key for key in network if "head" not in key} == {f"encoder.{key}" for key in encoder} | decoder.keys()
    flow.run()
    flow.finalize()


def test_a_run_that_predicts_histograms_reconstructs_intensities(pretrained: Path, data_dir: Path):
    scan = data_dir / "volumes/mr_spine_tptbox.nii.gz"
    flow = ConfigWorkflow(
        str(ROOT / "configs/reconstruct.yaml"),
        workflow_type="train",
        bundle_root=str(pretrained),
        dataset_dir=str(scan),
    )
    flow.initialize()
    folder = flow.run()[0]
    found = nibabel.load(folder / "mr_spine_tptbox_reconstruction.nii.gz")
    image = nibabel.load(scan)
    assert found.shape == image.shape
    low, high = np.quantile(image.get_fdata(), (0, 1))
    assert found.get_fdata().min() >= low - 0.5 * (high - low) and found.get_fdata().max() <= high + 0.5 * (high - low)
    rows = list(csv.DictReader((folder / "errors.csv").open()))
    assert [row["volume"] for row in rows] == ["mr_spine_tptbox.nii.gz"]
    assert float(rows[0]["mae"]) < 2 * float(rows[0]["mae_zero_predictor"])
