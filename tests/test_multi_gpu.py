# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""Several processes on several nodes train as one does: gloo stands for NCCL, two launchers for two nodes."""

from __future__ import annotations

import csv
import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from .tiny_run import DEV, ROOT, TINY, TRAIN, bundle_root, train

MULTI_GPU = str(ROOT / "configs/multi_gpu_train.yaml")
# the alignment contrasts the places within a process, so it is another one with several processes; so is decorrelation
SAME = {
    "objectives#decorrelation": None,
    "steps_per_epoch": 3, "network_def#alignment": "@alignment_heads", "loss#alignment_weight": 0.0,
    "balance": "modality", "balance_weights": {"CT": 1, "MR": 3},
    "validate#dataloader#crops_per_volume": 2,  # one for each process
}  # fmt: skip
EQUAL = ("loss", "pretext", "reconstruction", "zero_predictor", "mean_predictor", "reconstruction_raw", "mask_ratio")
#: in the first step of the second epoch the last process of the second node gets a signal
STOP = "+train#handlers:\n- {_target_: tests.tiny_run.SignalOneProcess, rank: 3, step: 4}\n"


def figures(run: Path) -> list[dict[str, float]]:
    with (run / "metrics.csv").open() as file:
        return [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port: int = free.getsockname()[1]
        return port


def two_nodes(folder: Path, configs: list[str], options: dict) -> list[tuple[int, str]]:
    """Two launchers with two processes each, that meet over loopback; exit code and stderr of each."""
    launcher = [
        sys.executable, "-m", "torch.distributed.run", "--nnodes=2", "--nproc_per_node=2", "--rdzv_backend=c10d",
        f"--rdzv_endpoint=localhost:{free_port()}", "--rdzv_id=test", "--local_addr=localhost", "-m",
    ]  # fmt: skip
    command = [*launcher, "monai.bundle", "run", "training", "--config_file", json.dumps(configs)]
    command += [f"--{key}={value}" for key, value in options.items()]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    nodes = [
        subprocess.Popen(
            command, cwd=folder, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        )
        for _ in range(2)
    ]
    said = [node.communicate(timeout=300)[1] for node in nodes]
    return [(node.returncode, text) for node, text in zip(nodes, said)]


@pytest.fixture
def one_thread() -> Iterator[None]:
    """As the processes of the launchers have: sums by several threads are rounded otherwise."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("one_thread")
def test_two_nodes_are_stopped_and_one_process_goes_on_with_the_losses_of_one_alone(data_dir: Path, tmp_path: Path):
    root, stop = bundle_root(tmp_path / "root", data_dir), tmp_path / "stop.yaml"
    stop.write_text(STOP)
    options = {**TINY, **SAME, "bundle_root": root, "batch_size": 1, "output_dir": tmp_path / "two"}
    nodes = two_nodes(tmp_path, [TRAIN, DEV, MULTI_GPU, str(stop)], options)
    said = "".join(text for _, text in nodes)
    assert all(code != 0 and "exitcode  : 75" in text for code, text in nodes), said[-3000:]
    file = tmp_path / "two/checkpoints/last.pt"
    line = f"stopped by another process in epoch 2, iteration 4: {file} is written, go on with --resume"
    assert said.count(f"\n{line}") == 1, said[-3000:]
    assert len(figures(tmp_path / "two")) == 1

    alone = {**SAME, "batch_size": 2, "global_batch": 4}  # in two parts
    one = train(root, **alone, output_dir=str(tmp_path / "one"))
    train(root, **alone, resume=str(tmp_path / "two"))
    rows, others = figures(one), figures(tmp_path / "two")
    assert len(rows) == len(others) == 2
    for row, other in zip(rows, others):
        for name in EQUAL:
            for part in ("train", "validation"):
                assert other[f"{part}/{name}"] == pytest.approx(row[f"{part}/{name}"], abs=1e-5), f"{part}/{name}"
    # what is compared does change from step to step
    assert abs(rows[0]["validation/reconstruction"] - rows[1]["validation/reconstruction"]) > 1e-4
    weights, other_weights = (torch.load(run / "model.pt", weights_only=True) for run in (one, tmp_path / "two"))
    for name, weight in weights.items():
        # Adam makes whole steps of gradients that are rounding noise, so single weights may differ
        assert (other_weights[name] - weight).abs().mean() < 1e-5, name
