# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""A run of version 0.1.0, whose components were in other rooms: refused in one line, and resumed."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from monai.bundle import create_workflow

from bundle.errors import UserError, user_error_in
from bundle.runs import TrainedRun
from bundle.training.history import read_history

from .tiny_run import ROOT, TINY, TRAIN, bundle_root, train

EVALUATE, RECONSTRUCT = (str(ROOT / f"configs/{name}.yaml") for name in ("evaluate", "reconstruct"))


@pytest.fixture(scope="module")
def root(data_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return bundle_root(tmp_path_factory.mktemp("bundle"), data_dir)


@pytest.fixture(scope="module")
def old(root: Path) -> Path:
    """A run of one epoch whose recorded settings have the names of 0.1.0."""
    folder = train(root, epochs=1)
    text = (folder / "config.yaml").read_text()
    assert "bundle.runs.pick_device" in text and "bundle.masking.MaskedBatch" in text
    text = text.replace("bundle.runs.", "bundle.training.").replace("masking.MaskedBatch", "training.MaskedBatch")
    config = yaml.safe_load(text)
    assert config["ct_window"] is config["mr_percentiles"] is None
    config |= {"ct_window": [-1000, 1000], "mr_percentiles": [0.5, 99.5]}  # as 0.1.0 wrote what null means
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    return folder


def problem(make) -> str:
    """What the user reads."""
    with pytest.raises(Exception) as caught:  # noqa: PT011 - MONAI wraps it
        make()
    found = user_error_in(caught.value)
    assert isinstance(found, UserError), repr(caught.value)
    return str(found)


def evaluate(root: Path, folder: Path):
    flow = create_workflow(
        config_file=[TRAIN, EVALUATE], workflow_type="train", bundle_root=str(root), run_folder=str(folder)
    )
    flow.run()
    return flow


def reconstruct(root: Path, folder: Path):
    flow = create_workflow(
        config_file=RECONSTRUCT, workflow_type="train", bundle_root=str(root), run_folder=str(folder), device="cpu"
    )
    flow.run()


def read(root: Path, folder: Path):
    TrainedRun(bundle_root=root, run_folder=folder)


@pytest.mark.parametrize("use", [evaluate, reconstruct, read])
def test_its_use_is_refused_in_one_line_that_says_what_to_do(use, root: Path, old: Path):
    said = problem(lambda: use(root, old))
    assert said.startswith(f"{old}/config.yaml was written by an earlier version of this bundle (0.1.0)")
    assert "bundle.training." in said and "train again" in said and f"--resume {old}" in said
    assert "\n" not in said


def test_it_is_resumed_with_the_configs_of_this_version_and_then_used(root: Path, old: Path):
    assert train(root, resume=str(old), epochs=2) == old
    assert [row["epoch"] for row in read_history(old / "metrics.csv")] == [1, 2]
    anew = yaml.safe_load((old / "config_2.yaml").read_text())
    assert anew["run_device"]["_target_"] == "bundle.runs.pick_device" and anew["epochs"] == TINY["epochs"] == 2
    assert TrainedRun(run_folder=old).epoch == 2
    metrics = evaluate(root, old).parser.get_parsed_content("validate#evaluator").state.metrics
    assert metrics["validation/reconstruction"] == read_history(old / "metrics.csv")[1]["validation/reconstruction"]
