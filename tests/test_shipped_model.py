# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""The shipped weights reconstruct, with no run of one's own."""

from __future__ import annotations

import csv
import shutil
from pathlib import Path

import nibabel
import numpy as np
import pytest
from monai.bundle import ConfigWorkflow

from bundle.errors import UserError, user_error_in
from bundle.runs import ShippedModel, TrainedRun, find_trained

from .tiny_run import ROOT, bundle_root, train

CONFIGS = ["train.yaml", "preset_shipped.yaml"]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A bundle as downloaded: no run."""
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    shutil.copytree(ROOT / "models", tmp_path / "models")
    return tmp_path


@pytest.fixture(scope="module")
def chest(data_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A piece of the chest CT, which was not in pre-training."""
    whole = nibabel.load(data_dir / "volumes/ct_chest_lidc.nii.gz")
    size = [round(120 / mm) for mm in whole.header.get_zooms()]
    corner = [(n - s) // 2 for n, s in zip(whole.shape, size)]
    file = tmp_path_factory.mktemp("chest") / "chest.nii.gz"
    nibabel.save(whole.slicer[tuple(slice(c, c + s) for c, s in zip(corner, size))], file)
    return file


def reconstruct(root: Path, **overrides) -> Path:
    config = str(ROOT / "configs/reconstruct.yaml")
    flow = ConfigWorkflow(config, workflow_type="train", bundle_root=str(root), device="cpu", **overrides)
    flow.initialize()
    return flow.run()[0]


def test_without_a_run_the_shipped_weights_reconstruct_a_volume_they_have_not_seen(root: Path, chest: Path):
    folder = reconstruct(root, dataset_dir=str(chest))
    assert folder == root / "runs/shipped/reconstruction"
    with (folder / "errors.csv").open() as file:
        (row,) = csv.DictReader(file)
    assert row["unit"] == "HU"
    for trivial in ("mean", "zero"):
        assert float(row["mae"]) < 0.75 * float(row[f"mae_{trivial}_predictor"])
    original, made, masked = (
        np.asarray(nibabel.load(file).dataobj, dtype=np.float32)
        for file in (chest, folder / "chest_reconstruction.nii.gz", folder / "chest_masked.nii.gz")
    )
    hidden = (masked != original) & (original > -1000)
    assert np.corrcoef(made[hidden], original[hidden])[0, 1] > 0.7
    assert (folder / "chest.png").stat().st_size > 0


def test_a_run_of_ones_own_goes_before_them(root: Path, data_dir: Path, tmp_path_factory: pytest.TempPathFactory):
    assert type(find_trained(configs=CONFIGS, bundle_root=root)) is ShippedModel
    own = bundle_root(tmp_path_factory.mktemp("own"), data_dir)
    run = train(own, steps_per_epoch=1, epochs=1)
    found = find_trained(configs=CONFIGS, bundle_root=own)
    assert type(found) is TrainedRun and found.folder.path == run
    shutil.copytree(root / "models", own / "models", dirs_exist_ok=True)
    assert type(find_trained(configs=CONFIGS, bundle_root=own, run_folder="shipped")) is ShippedModel


@pytest.mark.parametrize("name", ["model.pt", "model.json", "model_decoder.pt"])
def test_a_missing_or_exchanged_file_is_named(root: Path, chest: Path, name: str):
    if name != "model.json":
        (root / "models" / name).write_bytes(b"another")
        assert f"models/{name} is not the file that model.json describes" in _error(root, dataset_dir=str(chest))
    (root / "models" / name).unlink()
    text = _error(root, dataset_dir=str(chest))
    assert f"models/{name} is missing" in text and "--run_folder" in text


def test_weights_of_another_network_are_refused(root: Path):
    model = ShippedModel(configs=CONFIGS, bundle_root=root, settings={"encoder#init_filters": 8})
    with pytest.raises(UserError, match=r"model\.pt holds another network"):
        _ = model.network


def _error(root: Path, **overrides) -> str:
    with pytest.raises((RuntimeError, ValueError)) as error:
        reconstruct(root, **overrides)
    found = user_error_in(error.value)
    assert found is not None, repr(error.value)
    return str(found)
