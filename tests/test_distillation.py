# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""Self-distillation trains from its config, and goes on after a stop as if there had been none."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from monai.bundle import ConfigWorkflow

from bundle.runs import find_trained
from bundle.training.history import read_history
from tests.tiny_run import DEV, ROOT, TINY, TRAIN, bundle_root

OVERLAYS = ("objective_distillation", "appearance_regions")
CONFIGS = [TRAIN, DEV, *(str(ROOT / f"configs/{name}.yaml") for name in OVERLAYS)]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory, data_dir: Path) -> Path:
    return bundle_root(tmp_path_factory.mktemp("distillation"), data_dir)


def trained(root: Path, run: Path, **options) -> dict[str, torch.Tensor]:
    """Trains for two epochs of a step; gives the network's state."""
    given = {
        **TINY,
        "steps_per_epoch": 1,
        "val_interval": 2,
        "encoder#blocks_down": [1, 1, 1],
        "crop_size": [16, 16, 16],
        "objectives#distillation#level_weights": [1, 1],
        "objectives#distillation#prototypes": 8,
        "objectives#distillation#samples": 64,
        "objectives#distillation#balance": "centre",
        "objectives#pretext": None,
        "output_dir": str(run),
        **options,
    }
    flow = ConfigWorkflow(CONFIGS, workflow_type="train", run_id="training", bundle_root=str(root), **given)
    flow.initialize()
    batch = next(iter(flow.parser.get_parsed_content("train#dataloader")))
    assert not torch.equal(batch["image"], batch["clean"])
    flow.run()
    flow.finalize()
    state: dict[str, torch.Tensor] = torch.load(run / "checkpoints/last.pt", weights_only=True)["network"]
    return state


def test_it_trains_stops_and_goes_on_with_the_same_teacher(root: Path, tmp_path: Path):
    whole = trained(root, tmp_path / "whole")
    trained(root, tmp_path / "run", **{"train#trainer#max_epochs": 1})
    again = trained(root, tmp_path / "run", resume=True)
    assert whole.keys() == again.keys()
    for name, value in whole.items():
        assert torch.equal(value, again[name]), name
    assert whole["distillation.centre"].abs().max() > 0
    assert whole["teacher.average.n_averaged"] == 2
    assert any(key.startswith("teacher.average.module.decoder.up_layers.") for key in whole)

    rows = read_history(tmp_path / "run/metrics.csv")
    assert [row["epoch"] for row in rows] == [1, 2]
    for row in rows:
        assert row["train/distillation"] > 0
        assert 0 < row["train/distillation_information"] < 1 and 1 < row["train/distillation_used"] <= 8
    assert rows[1]["validation/distillation"] > 0
    model, decoder = (torch.load(tmp_path / f"run/{name}.pt", weights_only=True) for name in ("model", "model_decoder"))
    assert not any("distillation" in key or "teacher" in key for key in (*model, *decoder))
    network = find_trained(configs=[], bundle_root=root, run_folder=tmp_path / "run").network  # reconstructs
    assert {key: value.tolist() for key, value in network.state_dict().items()} == {
        key: value.tolist() for key, value in again.items() if key.startswith(("encoder.", "decoder."))
    }
