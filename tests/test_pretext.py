# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""A pretext segmentation trains from its config: classes are made once, learned, kept, read again, and handed on."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from monai.bundle import ConfigWorkflow, create_workflow
from monai.networks.nets.segresnet_ds import SegResNetDS
from monai.transforms import RandAffined

from bundle.training.history import read_history
from tests.tiny_run import DEV, ROOT, TINY, TRAIN, bundle_root

CONFIGS = [TRAIN, DEV]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory, data_dir: Path) -> Path:
    return bundle_root(tmp_path_factory.mktemp("pretext"), data_dir)


def prepared(root: Path, **options) -> ConfigWorkflow:
    given = {**TINY, "steps_per_epoch": 1, "pretext_classes#classes": 6, **options}
    flow = ConfigWorkflow(CONFIGS, workflow_type="train", run_id="training", bundle_root=str(root), **given)
    flow.initialize()
    return flow


def trained(flow: ConfigWorkflow) -> Path:
    flow.run()
    flow.finalize()
    path: Path = flow.parser.get_parsed_content("run_folder").path
    return path


def test_all_maps_of_a_crop_move_with_it(root: Path, tmp_path: Path):
    """The default's rotation and scale: each key has its own interpolation."""
    flow = prepared(root, output_dir=str(tmp_path / "run"))
    (move,) = [one for one in flow.parser.get_parsed_content("train#preprocessing").transforms
               if isinstance(one, RandAffined)]  # fmt: skip
    move.prob = 1.0
    move.set_random_state(seed=1)
    image = torch.rand(1, 16, 16, 16).mul(4).floor()
    names = ("image", "weight_map", "foreground", "valid", "pretext_class")
    moved = move({name: image.clone() for name in names})
    assert not torch.equal(moved["image"], image)
    assert torch.equal(moved["image"], moved["weight_map"])
    for name in names[2:]:
        assert set(moved[name].unique().tolist()) <= {0, 1, 2, 3}, "classes are not averaged"
        assert torch.equal(moved[name], moved["valid"])
    assert (moved["image"] - moved["valid"]).abs().mean() < (moved["image"] - image).abs().mean()
    assert "weight_map" not in move({name: image.clone() for name in names if name != "weight_map"})
    flow.finalize()


def test_it_trains_stops_and_goes_on_with_the_same_classes(root: Path, tmp_path: Path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run/pretext_classes.json").write_text("of a start with other volumes that failed")
    flow = prepared(root, output_dir=str(tmp_path / "run"), **{"train#trainer#max_epochs": 1})
    batch = next(iter(flow.parser.get_parsed_content("train#dataloader")))
    classes = batch["pretext_class"]
    assert classes.shape == batch["image"].shape == batch["clean"].shape
    assert set(classes.unique().tolist()) <= set(range(6)) and len(classes.unique()) > 2
    assert (classes[~batch["foreground"]] == 0).float().mean() > 0.9  # moved alike, but for bodies' borders
    assert not torch.equal(batch["image"], batch["clean"])
    run = trained(flow)
    kept = (run / "pretext_classes.json").read_text()

    again = prepared(root, output_dir=str(run), resume=True)
    assert trained(again) == run and (run / "pretext_classes.json").read_text() == kept
    rows = read_history(run / "metrics.csv")
    assert [row["epoch"] for row in rows] == [1, 2]
    for row in rows:
        assert row["train/pretext"] > 0 and 0 <= row["train/pretext_accuracy_hidden"] <= 1
        assert row["validation/pretext"] > 0 and 0 < row["validation/pretext_accuracy_guess"] <= 1
        assert row["train/decorrelation"] > 0
        filled = [row[f"train/dimensions_{half}{level}"] for half in ("level", "decoder") for level in range(4)]
        assert all(1 <= one <= most for one, most in zip(filled, [4, 8, 16, 32] * 2))

    network = SegResNetDS(init_filters=4, blocks_down=(1, 1, 1, 1, 1), norm=("instance", {"affine": True}))
    encoder, decoder = (torch.load(run / f"{name}.pt", weights_only=True) for name in ("model", "model_decoder"))
    network.encoder.load_state_dict(encoder, strict=True)
    assert not any("pretext" in key for key in (*encoder, *decoder))
    assert any(key.startswith("up_layers.") for key in decoder)
    state = torch.load(run / "checkpoints/last.pt", weights_only=True)["network"]
    assert state["pretext.classes.weight"].shape == (6, 4, 1, 1, 1)

    for config in ([TRAIN, str(ROOT / "configs/evaluate.yaml")], [str(ROOT / "configs/reconstruct.yaml")]):
        flow = create_workflow(config_file=config, workflow_type="train", bundle_root=str(root), run_folder=str(run))
        flow.run()
        flow.finalize()
    metrics = json.loads((run / "evaluation.json").read_text())["metrics"]
    assert metrics == {name: value for name, value in rows[-1].items() if name.startswith("validation/")}
    assert (run / "reconstruction/errors.csv").is_file()
    assert (run / "pretext_classes.json").read_text() == kept
