# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""From a plan and nnU-Net's preprocessed folder through the config to the file that nnU-Net begins with."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from dynamic_network_architectures.architectures.unet import ResidualEncoderUNet
from monai.bundle import ConfigWorkflow
from torch import nn

from bundle.errors import user_error_in
from bundle.export import export_model, plain_model
from bundle.weights import ModelFiles
from tests.data.nnunet.folders import plan, write_case, write_plan
from tests.export.test_nnunet import load_as_nnunet
from tests.tiny_run import TRAIN

ROOT = Path(__file__).parents[1]
FILES = [TRAIN, *(str(ROOT / f"configs/{name}.yaml") for name in ("nnunet",))]
PLAN = plan("ResidualEncoderUNet", patch=(8, 16, 32))


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("nnU Net")
    write_plan(folder, PLAN)
    for number, size in enumerate([(9, 20, 40), (8, 18, 30), (7, 16, 33)]):
        image = np.random.default_rng(number).normal(size=(2, *size)).astype(np.float32)
        image[:, 2:7, 4:14, 4:24] += 5
        write_case(folder / "nnUNetPlans_3d_fullres", f"case {number}", image)
    return folder


def workflow(root: Path, files: list[str] = FILES, **options) -> ConfigWorkflow:
    settings = {
        "bundle_root": str(root),
        "dataset_dir": str(root),
        "nnunet_plans": str(root / "nnUNetPlans.json"),
        "device": "cpu",
        "epochs": 1,
        "steps_per_epoch": 2,
        "num_workers": 0,
    }
    return ConfigWorkflow(files, workflow_type="train", run_id="training", **{**settings, **options})


@pytest.fixture(scope="module")
def run(root: Path) -> Path:
    flow = workflow(root)
    flow.initialize()
    volumes = flow.parser.get_parsed_content("volumes")
    assert (len(volumes.training), len(volumes.validation), volumes.skipped) == (2, 1, [])
    assert flow.parser.get_parsed_content("checked_crop_size") == (8, 16, 32)
    flow.run()
    folder: Path = flow.parser.get_parsed_content("run_folder").path
    flow.finalize()
    return folder


def test_model_json_says_whose_arrays_the_weights_are_for(run: Path):
    about = json.loads((run / "model.json").read_text())
    assert (about["orientation"], about["crop_size"], about["spacing"]) == ("LSP", [8, 16, 32], [3.0, 1.0, 0.8])
    assert about["nnunet"]["plans_name"] == "nnUNetPlans" and about["nnunet"]["transpose_forward"] == [2, 0, 1]
    assert [scheme["kind"] for scheme in about["intensity_scheme"]] == ["z_score", "statistics"]
    assert about["encoder"]["input_channels"] == 2 and "clipped" not in str(about["intensity"])


def test_nnunet_begins_with_encoder_and_decoder_bit_for_bit(run: Path, tmp_path: Path):
    model = plain_model(run / "model.pt")
    export_model(model, "nnunet", tmp_path / "out.pth")
    arguments = dict(PLAN["configurations"]["3d_fullres"]["architecture"]["arch_kwargs"])
    classes = {"conv_op": nn.Conv3d, "norm_op": nn.InstanceNorm3d, "dropout_op": None, "nonlin": nn.LeakyReLU}
    network = ResidualEncoderUNet(2, num_classes=5, deep_supervision=True, **(arguments | classes))
    load_as_nnunet(network, tmp_path / "out.pth")
    loaded = network.state_dict()
    assert all(torch.equal(loaded[key], value) for key, value in model.weights.items())
    decoder = {k: v for k, v in torch.load(run / "model_decoder.pt", weights_only=True).items() if "." in k}
    kept = {key: value for key, value in decoder.items() if key.startswith(("stages.", "transpconvs."))}
    assert len(kept) == len(decoder) - 2 - 5  # all but the last layer and the mask tokens
    assert all(torch.equal(loaded[f"decoder.{key}"], value) for key, value in kept.items())


def test_a_pretraining_to_the_plan_goes_on_from_it_and_reads_the_same_arrays(run: Path, root: Path):
    flow = workflow(root, init_from=str(run))
    flow.initialize()
    network = flow.parser.get_parsed_content("started_network")
    weights = torch.load(run / "model.pt", weights_only=True)
    state = network.encoder.network.state_dict()
    assert all(torch.equal(state[key], value) for key, value in weights.items())
    decoder = torch.load(run / "model_decoder.pt", weights_only=True)
    assert all(torch.equal(network.decoder.state_dict()[key], value) for key, value in decoder.items())
    flow.finalize()
    assert ModelFiles(run).describe().content["orientation"] == "LPS"  # the axes SPL in the order x, y, z


def test_a_patch_that_does_not_divide_and_a_missing_file_are_one_line(root: Path, tmp_path: Path):
    file = write_plan(tmp_path, plan(patch=(6, 16, 32)))
    flow = workflow(root, nnunet_plans=str(file))
    with pytest.raises(RuntimeError) as caught:
        flow.parser.get_parsed_content("crop_size")
    assert "does not divide by its network's strides [4, 8, 16]: give --crop_size" in str(user_error_in(caught.value))
    assert workflow(root, nnunet_plans=str(file), crop_size=[8, 16, 32]).parser["crop_size"] == [8, 16, 32]
    with pytest.raises(RuntimeError) as caught:
        workflow(root, [TRAIN]).initialize()
    assert "nnunet.yaml: add that file to --config_file" in str(user_error_in(caught.value))
