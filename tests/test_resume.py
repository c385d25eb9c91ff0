# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""Resumes through the bundle's configs: what is refused changes nothing, what is accepted trains the same weights."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import yaml

from bundle.errors import UserError, user_error_in
from bundle.runs import TrainedRun
from bundle.runs.lock import release_folders

from .tiny_run import VOLUMES, bundle_root, train


@pytest.fixture(scope="module")
def root(data_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return bundle_root(tmp_path_factory.mktemp("bundle"), data_dir, own_cache=True)


@pytest.fixture(scope="module")
def run(root: Path) -> Path:
    return train(root, epochs=1)


def content(folder: Path) -> dict[Path, bytes]:
    return {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def refusal(root: Path, **overrides) -> str:
    with pytest.raises(Exception) as caught:  # noqa: PT011 - MONAI wraps it
        train(root, **overrides)
    release_folders()  # as the end of the process does
    found = user_error_in(caught.value)
    assert isinstance(found, UserError), repr(caught.value)
    return str(found)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("crop_size", [32, 32, 48]),
        ("spacing", [3, 3, 3]),
        ("modality", "MR"),
        ("ct_window", [-160, 240]),
        ("batch_size", 1),
        ("steps_per_epoch", 3),
        ("seed", 1),
    ],
)
def test_a_refused_resume_names_the_difference_and_leaves_the_run_as_it_was(root, run, name: str, value):
    before, cached = content(run), content(root / ".cache")
    said = refusal(root, resume=str(run), **{name: value})
    assert f"was trained with --{name} " in said and f"this command has {value}" in said and "\n" not in said
    assert content(run) == before
    assert content(root / ".cache").keys() == cached.keys(), "no volume was prepared"


def test_a_resume_with_other_volumes_is_refused_and_evaluation_takes_the_runs_settings(root, run, data_dir, tmp_path):
    for name in VOLUMES[:3]:
        (tmp_path / name).symlink_to(data_dir / "volumes" / name)
    before = content(run)
    said = refusal(root, resume=str(run), dataset_dir=str(tmp_path), lr=1.0)
    assert "was trained on other data" in said and "--dataset_dir" in said and "\n" not in said
    assert content(run) == before
    assert TrainedRun(run_folder=run).config == run / "config.yaml"


def test_a_wrong_setting_is_refused_before_anything_is_made(root: Path, tmp_path: Path):
    said = refusal(root, max_gradient_norm=-1, output_dir=str(tmp_path / "new"), cache_dir=str(tmp_path / "cache"))
    assert said == "--max_gradient_norm -1 cannot work: give a number above 0"
    assert not list(tmp_path.iterdir())


def test_what_may_differ_is_accepted_and_recorded(root: Path, tmp_path: Path):
    path = train(root, epochs=1, output_dir=str(tmp_path / "run"))
    train(root, resume=str(path), epochs=2, lr=1e-4, weight_decay=0.0, num_workers=1, val_interval=2)
    assert yaml.safe_load((path / "config_2.yaml").read_text())["lr"] == 1e-4
    assert TrainedRun(run_folder=path).config == path / "config_2.yaml"
    assert [line.split(",")[0] for line in (path / "metrics.csv").read_text().splitlines()] == ["epoch", "1", "2"]


def test_a_step_of_as_many_crops_may_be_taken_in_other_parts(root: Path, tmp_path: Path):
    path = train(root, epochs=1, output_dir=str(tmp_path / "run"), batch_size=2)
    train(root, resume=str(path), epochs=2, batch_size=1, global_batch=2, balance=None)
    assert yaml.safe_load((path / "config_2.yaml").read_text())["global_batch"] == 2
    assert "was trained with --global_batch 2" in refusal(root, resume=str(path), epochs=3, batch_size=1)


def test_with_loading_processes_a_resume_draws_the_same_numbers(root: Path, tmp_path: Path):
    """An alignment draws its places from the global generator, of which workers may not take a seed."""
    options = {"num_workers": 1, "network_def#alignment": "@alignment_heads", "epochs": 3}
    whole = train(root, output_dir=str(tmp_path / "whole"), **options)
    part = train(root, output_dir=str(tmp_path / "part"), **options, **{"train#trainer#max_epochs": 1})
    resumed = train(root, output_dir=str(tmp_path / "part"), resume=True, **options)
    assert resumed == part
    one, two = (torch.load(path / "checkpoints/last.pt", weights_only=True) for path in (whole, resumed))
    assert all(torch.equal(value, two["network"][name]) for name, value in one["network"].items())
    assert torch.equal(one["random_states"][0]["torch"], two["random_states"][0]["torch"])
