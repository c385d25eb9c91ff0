# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""A pre-training by the config goes on from a run's weights, prepared as that run prepared its volumes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from monai.bundle import ConfigWorkflow

from bundle.weights import checksum
from tests.tiny_run import DEV, TINY, TRAIN, bundle_root, train


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory, data_dir: Path) -> Path:
    return bundle_root(tmp_path_factory.mktemp("init_from"), data_dir)


@pytest.fixture(scope="module")
def first(root: Path) -> Path:
    return train(root, epochs=1, ct_window=[-200, 300])


def test_it_begins_with_those_weights_and_their_preparation(first: Path, root: Path):
    overrides = {key: value for key, value in TINY.items() if not key.startswith("encoder") and key != "spacing"}
    flow = ConfigWorkflow(
        [TRAIN, DEV], workflow_type="train", run_id="training", bundle_root=str(root), init_from=str(first),
        **{**overrides, "epochs": 1, "spacing": None},
    )  # fmt: skip
    flow.initialize()
    network = flow.parser.get_parsed_content("started_network")
    weights = torch.load(first / "model.pt", weights_only=True)
    assert all(torch.equal(network.encoder.network.state_dict()[key], value) for key, value in weights.items())
    flow.run()
    folder = flow.parser.get_parsed_content("run_folder").path
    flow.finalize()
    about, before = (json.loads((path / "model.json").read_text()) for path in (folder, first))
    assert about["encoder"] == before["encoder"]
    assert (about["ct_window"], about["spacing"]) == ([-200, 300], [4, 4, 4])
    assert [step["sha256"] for step in about["origin"]] == [checksum(first / "model.pt")]
    assert checksum(folder / "model.pt") != checksum(first / "model.pt")
