# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""Thick slices: from scratch the network has strides of its own, and all that follows works with it."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from monai.bundle import ConfigWorkflow
from monai.networks.nets import SegResNetDS
from nibabel.processing import resample_to_output

from tests.test_finetune import ENCODER, ROOT, run, weights

SCRATCH = {"pretrained": None, "epochs": 1, **{f"encoder#{name}": value for name, value in ENCODER.items()}}


@pytest.fixture(scope="module")
def dataset(data_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two heads in slices of 16 mm, 1 grey and 2 white matter in one, and the other way round in the other."""
    folder = tmp_path_factory.mktemp("thick")
    head, grey, white = (
        resample_to_output(nibabel.load(data_dir / file), (6.0, 6.0, 16.0), order=1)
        for file in (
            "volumes/mr_brain_mni152.nii.gz",
            "labels/mr_brain_mni152_grey.nii.gz",
            "labels/mr_brain_mni152_white.nii.gz",
        )
    )
    label = np.stack([np.full(head.shape, 127.0), grey.get_fdata(), white.get_fdata()]).argmax(0).astype(np.uint8)
    for number, classes in enumerate((label, np.array([0, 2, 1], dtype=np.uint8)[label])):
        for kind, array in (("imagesTr", head.get_fdata(dtype=np.float32)), ("labelsTr", classes)):
            (folder / kind).mkdir(exist_ok=True)
            nibabel.save(nibabel.Nifti1Image(array, head.affine), folder / kind / f"head_{number}.nii.gz")
    return folder


@pytest.fixture(scope="module")
def finished(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run(tmp_path_factory.mktemp("bundle"), dataset, **SCRATCH)[0]


def test_the_product_is_monais_network_with_a_resolution(finished: Path):
    about = json.loads((finished / "model.json").read_text())
    assert about["encoder"] == {**ENCODER, "name": "SegResNetDS", "resolution": [6.0, 6.0, 16.0]}
    arguments = dict(about["network"])
    assert arguments.pop("name") == "SegResNetDS" and arguments["resolution"] == [6.0, 6.0, 16.0]
    network = SegResNetDS(**arguments)
    network.load_state_dict(weights(finished / "model.pt"), strict=True)
    assert network.encoder.layers[0].downsample.stride == (2, 2, 1)


def test_it_is_gone_on_from(finished: Path, dataset: Path, tmp_path: Path):
    again, flow = run(tmp_path, dataset, pretrained=str(finished / "model.pt"), epochs=1, lr=0.0)
    assert flow.parser.get_parsed_content("transfer").report.share == 1
    before, after = weights(finished / "model.pt"), weights(again / "model.pt")
    assert before.keys() == after.keys() and all(torch.equal(before[key], after[key]) for key in before)


@pytest.mark.parametrize(
    ("config", "model", "product"),
    [("inference", "weights", "embeddings/head_0.npz"), ("predict_segmentation", "model", "label_maps/head_0.nii.gz")],
)
def test_it_embeds_and_predicts(config: str, model: str, product: str, finished: Path, dataset: Path, tmp_path: Path):
    given = {"dataset_dir": str(dataset / "imagesTr"), "output_dir": str(tmp_path), "device": "cpu", "num_workers": 0}
    flow = ConfigWorkflow(
        str(ROOT / f"configs/{config}.yaml"), workflow_type="infer", bundle_root=str(tmp_path),
        **{model: str(finished / "model.pt")}, **given,
    )  # fmt: skip
    flow.initialize()
    flow.run()
    assert (tmp_path / product).stat().st_size > 0, sorted(tmp_path.rglob("*"))
