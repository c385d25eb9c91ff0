# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""Several processes train as one does: gloo on the CPU stands for NCCL on GPUs."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
from pathlib import Path

import pytest

from .tiny_run import DEV, ROOT, TINY, TRAIN, bundle_root, train

MULTI_GPU = str(ROOT / "configs/multi_gpu_train.yaml")
# the alignment contrasts the places within a process, so it is another one with two processes
SAME = {"steps_per_epoch": 3, "network_def#alignment": "@alignment_heads", "loss#alignment_weight": 0.0}
EQUAL = ("loss", "reconstruction", "zero_predictor", "mean_predictor", "reconstruction_raw", "mask_ratio")


def figures(run: Path) -> list[dict[str, float]]:
    with (run / "metrics.csv").open() as file:
        return [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]


def test_two_processes_reach_the_losses_of_one_with_twice_the_batch(data_dir: Path, tmp_path: Path):
    root = bundle_root(tmp_path, data_dir)
    options = {**TINY, **SAME, "bundle_root": root, "batch_size": 1, "output_dir": tmp_path / "two"}
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "-m"]
    done = subprocess.run(
        [*launcher, "monai.bundle", "run", "training", "--config_file", f"['{TRAIN}','{DEV}','{MULTI_GPU}']",
         *(f"--{key}={value}" for key, value in options.items())],
        cwd=tmp_path, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=300,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    one = figures(train(root, **SAME, batch_size=2, output_dir=str(tmp_path / "one")))
    two = figures(tmp_path / "two")
    assert len(one) == len(two) == 2
    for row, other in zip(one, two):
        for name in EQUAL:
            for part in ("train", "validation"):
                assert other[f"{part}/{name}"] == pytest.approx(row[f"{part}/{name}"], abs=1e-5), f"{part}/{name}"
    # what is compared does change from step to step
    assert abs(one[0]["validation/reconstruction"] - one[1]["validation/reconstruction"]) > 1e-4
