# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""An objective in a user's file, as its page shows it, trains from a config; nothing in the package knows it."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from monai.bundle import ConfigWorkflow, create_workflow
from monai.networks.nets.segresnet_ds import SegResNetDS

from bundle.training.history import read_history
from tests.tiny_run import DEV, ROOT, TINY, TRAIN, bundle_root

PAGE = ROOT / "docs/how-to/add_an_objective.md"


@pytest.fixture(scope="module")
def user_files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with the page's two files, and the page's warm-up in a third."""
    folder = tmp_path_factory.mktemp("user")
    blocks = re.findall(r"```(python|yaml)\n(.*?)```", PAGE.read_text(), flags=re.DOTALL)
    (code,) = [text for language, text in blocks if language == "python"]
    (folder / "my_objective.py").write_text(code)
    settings = [text for language, text in blocks if language == "yaml"]
    (folder / "my_objective.yaml").write_text(settings[0])
    (folder / "warm_up.yaml").write_text(settings[-1].replace("200", "4"))
    return folder


def prepared(user_files: Path, root: Path, *names: str, **options) -> ConfigWorkflow:
    files = [TRAIN, DEV, *(str(user_files / name) for name in names)]
    flow = ConfigWorkflow(files, workflow_type="train", run_id="training", bundle_root=str(root), **{**TINY, **options})
    flow.initialize()
    return flow


def trained(flow: ConfigWorkflow) -> Path:
    flow.run()
    flow.finalize()
    path: Path = flow.parser.get_parsed_content("run_folder").path
    return path


@pytest.fixture
def importable(user_files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(user_files))


@pytest.fixture
def root(tmp_path: Path, data_dir: Path) -> Path:
    return bundle_root(tmp_path / "bundle", data_dir)


@pytest.mark.usefixtures("importable")
def test_it_trains_is_logged_kept_and_resumed(user_files: Path, root: Path):
    files = (str(ROOT / "configs/objective_reconstruction.yaml"), "my_objective.yaml")
    flow = prepared(user_files, root, *files, **{"train#trainer#max_epochs": 1})
    head = flow.parser.get_parsed_content("network_def").contrast
    before = {key: value.clone() for key, value in head.state_dict().items()}
    run = trained(flow)
    for key, value in head.state_dict().items():
        assert not torch.equal(value, before[key]), f"{key} is not trained"

    again = prepared(user_files, root, *files, output_dir=str(run), resume=True)
    assert trained(again) == run
    rows = read_history(run / "metrics.csv")
    assert [row["epoch"] for row in rows] == [1, 2]
    for row in rows:
        assert row["train/contrast"] > 0 and row["validation/contrast"] > 0
        assert row["train/contrast_error"] > 0
    for row in rows:  # validation counts crops alike, so that its terms add up
        assert row["validation/loss"] == pytest.approx(
            row["validation/reconstruction"] + 0.1 * row["validation/contrast"], rel=1e-5
        )
    kept = torch.load(run / "checkpoints/last.pt", weights_only=True)["network"]
    assert {key for key in kept if key.startswith("contrast.")} == {"contrast.mean.weight", "contrast.mean.bias"}
    resumed = again.parser.get_parsed_content("network_def").contrast.state_dict()
    assert all(torch.equal(kept[f"contrast.{key}"], value) for key, value in resumed.items())

    weights = torch.load(run / "model.pt", weights_only=True)
    plain = SegResNetDS(init_filters=4, blocks_down=(1, 1, 1, 1, 1), norm=("instance", {"affine": True}))
    plain.encoder.load_state_dict(weights, strict=True)
    summary = (run / "summary.md").read_text()
    assert "| training loss: reconstruction + 0.1 x contrast |" in summary


@pytest.mark.usefixtures("importable")
def test_a_run_stopped_and_resumed_is_a_run_that_was_not(user_files: Path, root: Path, tmp_path: Path):
    whole = trained(prepared(user_files, root, "my_objective.yaml", output_dir=str(tmp_path / "whole")))
    part = {"output_dir": str(tmp_path / "part")}
    trained(prepared(user_files, root, "my_objective.yaml", **part, **{"train#trainer#max_epochs": 1}))
    trained(prepared(user_files, root, "my_objective.yaml", **part, resume=True))
    a, b = (
        torch.load(path / "checkpoints/last.pt", weights_only=True)["network"] for path in (whole, tmp_path / "part")
    )
    assert all(torch.equal(a[key], b[key]) for key in a)


@pytest.mark.usefixtures("importable")
def test_its_run_is_evaluated_and_reconstructs(user_files: Path, root: Path):
    run = trained(prepared(user_files, root, "my_objective.yaml"))
    for files in ([TRAIN, str(ROOT / "configs/evaluate.yaml")], [str(ROOT / "configs/reconstruct.yaml")]):
        flow = create_workflow(config_file=files, workflow_type="train", bundle_root=str(root), run_folder=str(run))
        flow.run()
        flow.finalize()
    last = read_history(run / "metrics.csv")[-1]
    assert json.loads((run / "evaluation.json").read_text())["metrics"] == {
        name: value for name, value in last.items() if name.startswith("validation/")
    }
    assert len(list((run / "reconstruction").glob("*.csv"))) == 1


@pytest.mark.usefixtures("importable")
def test_its_weight_can_rise(user_files: Path, root: Path):
    flow = prepared(user_files, root, "my_objective.yaml", "warm_up.yaml", epochs=1)
    assert flow.parser.get_parsed_content("loss").objectives["contrast"].warm_up == 1.0
    trained(flow)
    assert flow.parser.get_parsed_content("loss").objectives["contrast"].warm_up == 2 / 4


def test_nothing_in_the_package_or_its_configs_knows_it():
    files = [*(ROOT / "bundle").rglob("*.py"), *(ROOT / "configs").glob("*.yaml")]
    mentioned = [file for file in files if re.search(r"my_objective|CellMean", file.read_text())]
    assert [file.name for file in mentioned] == ["objective.py"], "the docstring's example alone"
