# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""docs/how-to/train.sbatch, with stand-ins for Slurm's programs and for torchrun."""

from __future__ import annotations

import os
import re
import signal
import subprocess
from pathlib import Path

import pytest
from torch.distributed.run import get_args_parser

from tests.page_commands import check_command

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "docs/how-to/train.sbatch"
#: each tells what it was called with; srun starts its command, as on one node, and torchrun waits for the signal
PROGRAMS = {
    "scontrol": 'if [ "$1" = show ]; then echo node7; echo node8; else echo "scontrol $*" >> calls; fi',
    "srun": 'while [ "${1#--}" != "$1" ]; do shift; done; exec "$@"',
    "torchrun": """for word in "$@"; do echo "$word" >> words; done
trap 'echo got the signal >> calls; exit 1' USR1
[ "${BEHAVE:-}" = complete ] && exit 0
touch ready; for i in $(seq 600); do sleep 0.1; done""",
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "bin").mkdir()
    for name, code in PROGRAMS.items():
        (tmp_path / "bin" / name).write_text(f"#!/bin/bash\n{code}\n")
        (tmp_path / "bin" / name).chmod(0o755)
    return tmp_path


def start(folder: Path, *options: str, **environment: str) -> subprocess.Popen[bytes]:
    slurm = {"SLURM_JOB_ID": "41", "SLURM_NNODES": "2", "SLURM_JOB_NODELIST": "node[7-8]"}
    path = f"{folder / 'bin'}:{os.environ['PATH']}"
    environment = {**os.environ, **slurm, "SLURM_SUBMIT_DIR": str(folder), "PATH": path, **environment}
    return subprocess.Popen(["bash", str(SCRIPT), *options], env=environment)


def test_every_node_gets_one_command_that_torchrun_and_the_configs_know(folder: Path) -> None:
    assert start(folder, "--epochs", "300", BEHAVE="complete").wait(timeout=60) == 0
    words = (folder / "words").read_text().splitlines()
    launcher = words[: words.index("-m")]
    known = vars(get_args_parser().parse_args([*launcher, "script"]))
    assert (known["nnodes"], known["nproc_per_node"], known["rdzv_endpoint"]) == ("2", "gpu", "node7:29500")
    assert (known["rdzv_backend"], known["rdzv_id"]) == ("c10d", "41-0")
    assert "SIGUSR1" in known["signals_to_handle"] and known["shutdown_timeout"] == 100
    assert "runs/job_41" in words and words[-2:] == ["--epochs", "300"]
    quoted = " ".join(f'"{word}"' if "[" in word else word for word in ["torchrun", *words])
    check_command(quoted, "", folder)
    assert not (folder / "calls").exists(), "a training that is complete is not put into the queue again"


def test_the_signal_reaches_the_training_and_the_job_is_queued_again(folder: Path) -> None:
    job = start(folder)
    while not (folder / "ready").exists():
        assert job.poll() is None
    job.send_signal(signal.SIGUSR1)
    assert job.wait(timeout=120) != 0
    assert (folder / "calls").read_text().splitlines() == ["got the signal", "scontrol requeue 41"]


def test_slurm_is_asked_for_the_signal_in_time() -> None:
    asked = dict(re.findall(r"^#SBATCH --([\w-]+)=(\S+)$", SCRIPT.read_text(), re.MULTILINE))
    which, seconds = asked["signal"].split("@")
    assert which == "B:USR1" and int(seconds) > 100, "torchrun's shutdown-timeout fits in"
    assert asked["ntasks-per-node"] == "1" and asked["open-mode"] == "append"
