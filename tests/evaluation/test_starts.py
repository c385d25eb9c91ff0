# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""Weights of several origins as arms: each has the network, the preparation and the scratch of its own."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bundle.errors import UserError
from bundle.evaluation.starts import find_starts
from bundle.tasks.segmentation import scratch_encoder
from bundle.weights import ModelFiles
from tests.export.models import write_model, write_nnunet_checkpoint
from tests.networks.encoder_cases import Case

SEGRES = Case("SegResEncoder", {"init_filters": 4, "blocks_down": [1, 1, 1], "norm": "instance"}, ())


def ours(folder: Path, **settings) -> str:
    folder.mkdir()
    given = {"spacing": [1, 2, 3], "version": "0.2.0", "licence": "Apache-2.0", **settings}
    return str(write_model(folder, SEGRES, **given)[0])


def test_weights_of_one_network_share_one_scratch(tmp_path: Path):
    starts = find_starts([ours(tmp_path / "a"), ours(tmp_path / "b", licence="CC BY 4.0")])
    assert list(starts) == ["scratch", "a/model.pt", "b/model.pt"]
    assert {start.scratch for start in starts.values()} == {"scratch"}
    scratch, a, b = (start.overrides() for start in starts.values())
    assert scratch == a == b and a["spacing"] == [1, 2, 3] and a["ct_window"] == [-1000, 1000]
    assert [start.origin for start in starts.values()] == [
        "from scratch",
        "version 0.2.0 of this project; licence: Apache-2.0",
        "version 0.2.0 of this project; licence: CC BY 4.0",
    ]


def test_scratch_has_the_network_of_the_weights_on_thick_slices_too(tmp_path: Path):
    scratch = find_starts([ours(tmp_path / "a")])["scratch"]
    encoder = {key: value for key, value in scratch.overrides()["encoder"].items() if key != "_target_"}
    assert scratch_encoder(encoder, dataset_dir=tmp_path, spacing=[1, 1, 5]) == scratch.settings.encoder


def test_other_networks_have_their_own_scratch_prepared_as_their_weights_are(tmp_path: Path):
    files = [ours(tmp_path / "a"), str(write_nnunet_checkpoint(tmp_path / "their results"))]
    starts = find_starts(files)
    name = "their results/checkpoint_final.pth"
    assert list(starts) == ["scratch, network of a/model.pt", "a/model.pt", f"scratch, network of {name}", name]
    weights, scratch = starts[name], starts[f"scratch, network of {name}"]
    assert weights.scratch == scratch.name and starts["a/model.pt"].scratch == "scratch, network of a/model.pt"
    assert (weights.config, starts["a/model.pt"].config) == ("finetune_nnunet.yaml", "")
    assert weights.overrides()["spacing"] == [1, 2, 3] and weights.overrides(spacing=[2, 2, 2])["spacing"] == [2, 2, 2]
    assert "settings#intensity_scheme" not in weights.overrides()  # the file says it itself
    assert scratch.overrides()["settings#intensity_scheme"] == {"kind": "z_score", "over": "nonzero_box"}
    assert weights.origin.startswith("nnunet; licence: not known")


def test_the_chain_of_origin_is_told(tmp_path: Path):
    chain = [{"card": "ct_fm", "file": "model.safetensors"}, {"file": "model.pt"}]
    starts = find_starts([ours(tmp_path / "a", origin=chain, licence="that of the weights it began with: Apache-2.0")])
    assert "which went on from ct_fm, then model.pt; licence: that of" in starts["a/model.pt"].origin


def test_what_no_config_fine_tunes_and_what_says_nothing_is_one_line(tmp_path: Path):
    file = ours(tmp_path / "a")
    about = json.loads(ModelFiles(file).settings.read_text())
    ModelFiles(file).settings.write_text(json.dumps({**about, "encoder": {"name": "my_file.my_encoder"}}))
    with pytest.raises(UserError, match="no config fine-tunes a segmentation network with that encoder"):
        find_starts([file])
    ModelFiles(file).settings.unlink()
    with pytest.raises(UserError, match=r"model.json is missing or names no encoder"):
        find_starts([file])
    same = [ours(tmp_path / "x"), ours(tmp_path / "x/x")]
    with pytest.raises(UserError, match="called alike"):
        find_starts(same)
