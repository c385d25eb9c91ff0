# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""Mask-in-Mask from a wide field trains from its config, with a full decoder and with aligned levels."""

from __future__ import annotations

import math
from pathlib import Path

import matplotlib.image
import pytest
import torch
from monai.bundle import ConfigWorkflow

from bundle.errors import user_error_in
from bundle.training.history import read_history
from tests.tiny_run import DEV, ROOT, TINY, TRAIN, bundle_root

WIDE, ALIGNED = (str(ROOT / f"configs/{name}.yaml") for name in ("levels_wide", "alignment_levels"))


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory, data_dir: Path) -> Path:
    folder = bundle_root(tmp_path_factory.mktemp("wide"), data_dir)
    for file in (folder / "data/volumes").iterdir():
        if "spine" not in file.name:
            file.unlink()  # two volumes are enough
    return folder


def prepared(root: Path, *configs: str, **options) -> ConfigWorkflow:
    given = {
        **TINY,
        "spacing": [1.5, 1.5, 1.5],
        "val_fraction": 0,
        "steps_per_epoch": 1,
        "mask_in_mask#levels#0#children": 1,
        **options,
    }
    flow = ConfigWorkflow(
        [TRAIN, DEV, *configs], workflow_type="train", run_id="training", bundle_root=str(root), **given
    )
    flow.initialize()
    return flow


def test_it_trains(root: Path, tmp_path: Path):
    run = tmp_path / "run"
    few = {"decoder#channels": 8, "loss#reconstruction#histogram#bins": 8, "validate#dataloader#crops_per_volume": 1}
    flow = prepared(root, WIDE, ALIGNED, output_dir=str(run), epochs=1, **few, **{"validate#handlers#4#crops": 1})
    batch = next(iter(flow.parser.get_parsed_content("train#dataloader")))
    assert batch["image"].shape == (2, 1, 32, 32, 32) and batch["children_image"].shape == (2, 1, 1, 32, 32, 32)
    assert not torch.equal(batch["image"], batch["clean"])
    assert not torch.equal(batch["children_image"], batch["children_clean"]), "degraded alike"
    assert (batch["spacing"] >= batch["children_spacing"][:, 0]).all()
    assert (batch["spacing"] > batch["children_spacing"][:, 0]).any()
    flow.run()
    flow.finalize()
    (row,) = read_history(run / "metrics.csv")
    for name in ("train/reconstruction", "train/reconstruction_level2", "train/alignment"):
        assert math.isfinite(row[name]) and row[name] > 0
    assert row["validation/reconstruction_level2"] > 0
    height, width = matplotlib.image.imread(run / "panels/epoch_0001.png").shape[:2]
    assert height > width / 5, "a row for the crop, and one for its child"
    assert (run / "model_decoder.pt").exists()


def test_classes_of_voxels_are_refused_in_one_line(root: Path, tmp_path: Path):
    keys = ["image", "valid", "foreground", "pretext_class"]
    flow = prepared(root, WIDE, output_dir=str(tmp_path / "other"), **{"train#dataset#keys": keys})
    with pytest.raises(RuntimeError, match="CropDataset") as raised:
        flow.parser.get_parsed_content("train#dataset")
    assert "pretext_class, which WideField cannot take: leave them out" in str(user_error_in(raised.value))
    flow.finalize()
