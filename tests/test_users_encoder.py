# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""The way of a user's own network: pre-trained, exported, loaded back, fine-tuned, with one file and two configs."""

from __future__ import annotations

import importlib
import json
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from monai.bundle import ConfigWorkflow

from bundle.export import FORMATS, export_model, plain_model
from bundle.transfer import load_encoder
from tests.tiny_run import DEV, ROOT, TINY, TRAIN, bundle_root
from tests.users_encoder import FINETUNE, PRETRAIN, write_encoder_file


def run(configs: list[str], **overrides) -> ConfigWorkflow:
    flow = ConfigWorkflow(configs, workflow_type="train", run_id="training", **{"device": "cpu", **overrides})
    flow.initialize()
    flow.run()
    flow.finalize()
    return flow


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, data_dir: Path) -> Path:
    """A user's folder: the file, the configs, and a bundle root with volumes and two label maps."""
    folder = tmp_path_factory.mktemp("user")
    (folder / "pretrain.yaml").write_text(PRETRAIN)
    (folder / "finetune.yaml").write_text(FINETUNE)
    root = bundle_root(folder / "root", data_dir)
    scan = data_dir / "volumes/mr_spine_tptbox.nii.gz"
    image = nibabel.load(scan)
    bright = (image.get_fdata() > np.quantile(image.get_fdata(), 0.9)).astype(np.uint8)
    for name in ("imagesTr", "labelsTr"):
        (root / "data/labelled" / name).mkdir(parents=True)
    for name in ("a", "b"):
        (root / f"data/labelled/imagesTr/{name}.nii.gz").symlink_to(scan)
        nibabel.save(nibabel.Nifti1Image(bright, image.affine), root / f"data/labelled/labelsTr/{name}.nii.gz")
    return folder


@pytest.fixture(scope="module")
def monkeymodule():
    with pytest.MonkeyPatch.context() as patch:
        yield patch


@pytest.fixture(scope="module")
def pretrained(folder: Path, monkeymodule: pytest.MonkeyPatch) -> Path:
    write_encoder_file(folder, monkeymodule)
    options = {key: value for key, value in TINY.items() if not key.startswith("encoder")}
    run([TRAIN, DEV, str(folder / "pretrain.yaml")], bundle_root=str(folder / "root"), **options)
    return folder / "root/models/model.pt"


def test_pre_training_publishes_its_weights_and_how_to_build_it(pretrained: Path):
    about = json.loads(pretrained.with_suffix(".json").read_text())
    assert about["encoder"] == {"name": "my_encoder.residual", "width": 4, "depth": 4}
    assert [level["channels"] for level in about["levels"]] == [4, 8, 16, 32] and about["iterations"] == 4
    network = importlib.import_module("my_encoder").ResidualNetwork(4, 4)
    network.load_state_dict(torch.load(pretrained, weights_only=True), strict=True)


def test_the_weights_load_back_as_a_plain_encoder_with_the_networks_own_features(pretrained: Path):
    module = importlib.import_module("my_encoder")
    torch.manual_seed(0)
    network, image = module.ResidualNetwork(4, 4).eval(), torch.randn(1, 1, 16, 16, 24)
    assert load_encoder(network, pretrained).share == 1
    with torch.no_grad():
        for given, expected in zip(plain_model(pretrained).network(image), network(image), strict=True):
            torch.testing.assert_close(given, expected, rtol=0, atol=0)
            assert given.std() > 0


@pytest.mark.parametrize("name", [name for name, format_ in FORMATS.items() if not format_.encoders])
def test_it_goes_into_every_file_format(pretrained: Path, tmp_path: Path, name: str):
    done = export_model(plain_model(pretrained), name, tmp_path / f"model{FORMATS[name].suffix}")
    assert done.relative < 1e-4


def fine_tune(folder: Path, **options) -> ConfigWorkflow:
    return run(
        [str(ROOT / "configs/finetune_segmentation.yaml"), str(folder / "finetune.yaml")],
        bundle_root=str(folder / "root"), classes={"bright": 1}, crop_size=[32, 32, 32], val_fraction=0.5,
        epochs=1, steps_per_epoch=3, batch_size=1, num_workers=0, warmup_epochs=0.5, fit_heads=1, **options,
    )  # fmt: skip


@pytest.mark.usefixtures("pretrained")
def test_the_same_network_can_start_from_scratch(folder: Path):
    flow = fine_tune(folder, pretrained=None)
    about = json.loads(flow.parser.get_parsed_content("run_folder").model.with_suffix(".json").read_text())
    assert about["network"] == {"name": "my_encoder.Segmentation", "width": 4, "depth": 4, "classes": 2}
    assert about["encoder"] == {"name": "my_encoder.residual", "width": 4, "depth": 4}


def test_fine_tuning_starts_from_them_inside_the_users_segmentation_network(pretrained: Path, folder: Path):
    flow = fine_tune(folder)
    transfer = flow.parser.get_parsed_content("transfer")
    given = torch.load(pretrained, weights_only=True)
    assert transfer.report.prefix == "encoder." and sorted(transfer.report.loaded) == sorted(given)
    assert transfer.levels == 4 and transfer.total_stride == (8, 8, 8)
    run_folder = flow.parser.get_parsed_content("run_folder")
    tuned = torch.load(run_folder.model, weights_only=True)
    differences = [(tuned[f"encoder.{key}"] - value).abs().max() for key, value in given.items() if value.numel()]
    assert 0 < max(differences) < 0.1  # three small steps away, and far from random
    about = json.loads(run_folder.model.with_suffix(".json").read_text())["network"]
    network = getattr(importlib.import_module("my_encoder"), about.pop("name").rpartition(".")[2])(**about)
    network.load_state_dict(tuned, strict=True)
