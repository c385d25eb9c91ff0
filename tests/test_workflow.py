# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""The bundle as a user runs it: configs, command line, real volumes."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from monai.bundle import ConfigWorkflow
from monai.networks.nets.segresnet_ds import SegResNetDS

from bundle.errors import user_error_in
from bundle.export import plain_model
from tests.commands import start_python

ROOT = Path(__file__).parents[1]
TRAIN, DEV = str(ROOT / "configs/train.yaml"), str(ROOT / "configs/preset_dev.yaml")
QUICK = {
    "steps_per_epoch": 2,
    "epochs": 2,
    "encoder#blocks_down": [1, 1, 1, 1, 1],
    "warmup_epochs": 0.5,
    "validate#dataloader#crops_per_volume": 1,
}
VOLUMES = ("ct_spine_tptbox.nii.gz", "ct_body_totalseg.nii.gz", "mr_body_totalseg.nii.gz", "mr_spine_tptbox.nii.gz")


@pytest.fixture(scope="module")
def folder(data_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle root of its own with two small CT and two small MR volumes, and a file that is none."""
    root = tmp_path_factory.mktemp("bundle")
    (root / "data/volumes").mkdir(parents=True)
    (root / "models").mkdir()
    for name in VOLUMES:
        shutil.copy(data_dir / "volumes" / name, root / "data/volumes" / name)
    (root / "data/volumes/broken.nii.gz").write_bytes(b"not an image")
    return root


def workflow(folder: Path, *presets: str, **overrides) -> ConfigWorkflow:
    files = [TRAIN, *presets]
    return ConfigWorkflow(files, workflow_type="train", run_id="training", bundle_root=str(folder), **overrides)


def run(folder: Path, **overrides) -> Path:
    """Trains for a moment; returns the run's folder."""
    flow = workflow(folder, DEV, **{**QUICK, **overrides})
    flow.initialize()
    flow.run()
    flow.finalize()
    path: Path = flow.parser.get_parsed_content("run_folder").path
    return path


def command(*arguments: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, "-m", "monai.bundle", "run", "training", *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
    return subprocess.run(line, cwd=cwd, env=environment, capture_output=True, text=True, timeout=300, check=False)


@pytest.fixture(scope="module")
def finished(folder: Path) -> Path:
    return run(folder, **{"network_def#alignment": "@alignment_heads"})


def test_the_run_leaves_everything_it_promises(finished: Path):
    for name in ("config.yaml", "metrics.csv", "curves.png", "summary.md", "model.pt", "model.json"):
        assert (finished / name).stat().st_size > 0, name
    assert (finished / "checkpoints/last.pt").exists() and (finished / "panels/epoch_0002.png").exists()
    assert any((finished / "tensorboard").iterdir())


def test_the_product_loads_strictly_into_the_segmentation_network(finished: Path, folder: Path):
    weights = torch.load(finished / "model.pt", weights_only=True)
    assert all(isinstance(value, torch.Tensor) for value in weights.values())
    arguments = {"init_filters": 8, "blocks_down": (1, 1, 1, 1, 1), "norm": ("instance", {"affine": True})}
    SegResNetDS(out_channels=3, **arguments).encoder.load_state_dict(weights, strict=True)
    assert (folder / "models/model.pt").read_bytes() == (finished / "model.pt").read_bytes()
    assert json.loads((finished / "model.json").read_text())["encoder"]["name"] == "SegResEncoder"


def test_the_products_settings_say_all_that_its_use_needs(finished: Path):
    model = plain_model(finished / "model.pt")
    about = model.settings
    assert about["spacing"] == [3, 3, 3] and about["orientation"] == "RAS" and about["crop_size"] == [32, 32, 32]
    assert about["ct_window"] == [-1000, 1000] and about["intensity"].keys() == {"CT", "MR"}
    assert [level["stride"] for level in about["levels"]] == [[2**n] * 3 for n in range(5)]
    assert [level["channels"] for level in about["levels"]] == model.network.channels == [8, 16, 32, 64, 128]
    assert about["total_stride"] == [16, 16, 16]
    assert about["volumes"]["training"] == {"CT": 1, "MR": 1}
    assert about["licence"] == "Apache-2.0" and about["version"].count(".") == 2


def test_the_summary_names_the_broken_file_and_the_figures(finished: Path):
    text = (finished / "summary.md").read_text()
    assert "broken.nii.gz: cannot be read" in text
    assert "training: 2 volumes (1 CT, 1 MR)" in text and "SegResEncoder" in text


def test_every_term_is_in_the_table_of_metrics(finished: Path):
    header, *rows = (finished / "metrics.csv").read_text().splitlines()
    wanted = ("loss", "reconstruction", "alignment", "mask_ratio", "zero_predictor", "mean_predictor")
    assert all(f"{part}/{term}" in header for part in ("train", "validation") for term in wanted)
    throughput = ("learning_rate", "volumes_per_second", "voxels_per_second", "peak_memory_mib")
    assert all(f"train/{term}" in header for term in throughput)
    assert len(rows) == 2


def test_an_existing_product_is_kept(finished: Path, folder: Path):
    before = (folder / "models/model.pt").read_bytes()
    again = run(folder, seed=1)
    assert again != finished
    assert (folder / "models/model.pt").read_bytes() == before


def test_an_output_folder_that_holds_a_run_is_not_written_over(finished: Path, folder: Path):
    with pytest.raises(RuntimeError) as error:
        run(folder, output_dir=str(finished))
    assert "--resume" in _root(error.value)


@pytest.mark.parametrize("preset", ["dev", "small", "prod"])
def test_presets_change_only_ids_that_exist(preset: str, folder: Path):
    flow = workflow(folder, str(ROOT / f"configs/preset_{preset}.yaml"))
    flow.initialize()  # raises on an unknown id
    sizes = {"dev": 32, "small": 64, "prod": 128}
    assert flow.parser.get_parsed_content("checked_crop_size") == (sizes[preset],) * 3


def test_monai_finds_all_properties_of_a_training_bundle(folder: Path):
    flow = workflow(folder, DEV)
    flow.initialize()
    assert flow.check_properties() == []


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("epoch", 3, "epochs"),
        ("network_def#executer", "cells", "executor"),
        ("mask_ratio", 60, "--mask_ratio"),
        ("crop_size", [40, 32, 32], "--crop_size"),
        ("crop_size", [16, 16, 16], "--crop_size"),
        ("modality", "PET", "--modality"),
        ("encoder#name", "SegResNetEncoder", "SegResEncoder"),
        ("device", "cuda:7", "device"),
        ("spacing", [1, 0, 1], "--spacing"),
        ("val_fraction", 1.5, "--val_fraction"),
        ("dataset_dir", "/nowhere", "fetch_data.py"),
    ],
)
def test_a_wrong_option_is_one_line_that_names_it(folder: Path, option: str, value, message: str):
    flow = workflow(folder, DEV, **{option: value})
    with pytest.raises((RuntimeError, ValueError)) as error:  # noqa: PT012 - some are found before, some while running
        flow.initialize()
        flow.run()
    text = _root(error.value)
    assert message in text and "\n" not in text


def _root(error: BaseException) -> str:
    found = user_error_in(error)
    assert found is not None, f"not a UserError: {error!r}"
    return str(found)


def test_without_data_the_bare_command_says_in_one_line_how_to_fetch_it(tmp_path: Path):
    done = command("--config_file", TRAIN, "--bundle_root", str(tmp_path), cwd=tmp_path)
    assert done.returncode == 1
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error:")]
    assert line.startswith(f"error: --dataset_dir {tmp_path}/data/volumes does not exist")
    assert '"python scripts/fetch_data.py"' in line
    assert "Traceback" not in done.stderr + done.stdout


def test_two_processes_train_one_model(folder: Path, tmp_path: Path):
    """As torchrun starts them, which test_multi_gpu.py has."""
    given = {**QUICK, "bundle_root": folder, "output_dir": tmp_path / "run", "device": "cpu"}
    options = ["--config_file", f"['{TRAIN}','{DEV}']", *(f"--{key}={value}" for key, value in given.items())]
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    common = {**os.environ, "MASTER_ADDR": "localhost", "MASTER_PORT": str(port), "WORLD_SIZE": "2"}
    started = []
    for rank in range(2):
        own = {"OMP_NUM_THREADS": "1", "RANK": str(rank), "LOCAL_RANK": str(rank)}
        line = ["-m", "monai.bundle", "run", "training", *options]
        started.append(start_python(*line, cwd=tmp_path, env={**common, **own}))
    done = [process.finish() for process in started]
    assert [process.returncode for process in done] == [0, 0], done[0].stderr[-3000:] + done[1].stderr[-3000:]
    assert (tmp_path / "run/model.pt").exists() and (tmp_path / "run/summary.md").exists()
    assert "".join(process.stdout for process in done).count("epoch 2/2") == 1  # one process reports
