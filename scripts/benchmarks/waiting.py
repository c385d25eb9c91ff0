# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""How should threads wait for each other? An epoch on the CPU, alone and beside other work on the same cores.

    python scripts/fetch_data.py
    python scripts/benchmarks/waiting.py
    python scripts/benchmarks/waiting.py --rounds 5 --busy 1

OpenMP's threads spin while they wait, which takes the cores from other programs and from the threads that they wait
for. libgomp, which torch brings, reads how to wait from the environment when it is loaded, so each case is a process.
The cases take turns; a case's time is the median of the epochs after the first of each run.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tqdm import tqdm

from bundle.training.history import read_history

ROOT = Path(__file__).resolve().parents[2]
#: how threads wait: what is in the environment
POLICIES: dict[str, dict[str, str]] = {
    "torch's default": {},
    "passive": {"OMP_WAIT_POLICY": "passive"},
    "short spin": {"GOMP_SPINCOUNT": "1000"},
}


@contextmanager
def busy_cores(count: int) -> Iterator[None]:
    """Keeps `count` cores busy inside the block, with a process each."""
    processes = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


def time_epochs(policy: dict[str, str], options: argparse.Namespace, work_dir: Path) -> list[float]:
    """Seconds of each epoch but the first of a training in a process of its own."""
    waiting = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
    environment = {name: value for name, value in os.environ.items() if name not in waiting} | policy
    with tempfile.TemporaryDirectory(dir=work_dir) as run:
        command = [sys.executable, "-m", "monai.bundle", "run", "training", "--bundle_root", str(ROOT)]
        command += ["--config_file", f"['{ROOT}/configs/train.yaml','{ROOT}/configs/preset_dev.yaml']"]
        command += ["--output_dir", f"{run}/out", "--cache_dir", str(work_dir / "cache"), "--device", "cpu"]
        command += ["--dataset_dir", str(options.dataset_dir), "--epochs", str(options.epochs)]
        command += ["--steps_per_epoch", str(options.steps)]
        done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(f"the training ended with an error:\n{done.stderr[-2000:]}")
        return [float(row["seconds"]) for row in read_history(Path(run) / "out/metrics.csv")][1:]


def make_table(seconds: dict[tuple[str, int], list[float]], loads: list[int]) -> str:
    """Median seconds of an epoch by policy and number of busy processes, as Markdown."""
    heads = ["alone" if load == 0 else f"beside {load} busy" for load in loads]
    lines = [f"| seconds of an epoch | {' | '.join(heads)} |", f"|---|{'---|' * len(loads)}"]
    for name in POLICIES:
        cells = [f"{statistics.median(seconds[name, load]):.2f}" for load in loads]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    parser = argparse.ArgumentParser(description="Times an epoch with threads that spin and with threads that sleep.")
    parser.add_argument("--dataset_dir", type=Path, default=ROOT / "data/volumes")
    parser.add_argument("--epochs", type=int, default=3, help="of a run; the first one is not counted")
    parser.add_argument("--steps", type=int, default=5, help="of an epoch")
    parser.add_argument("--rounds", type=int, default=3, help="runs of each case")
    parser.add_argument("--busy", type=int, default=os.cpu_count() or 1, help="processes beside the training")
    options = parser.parse_args(arguments)
    loads = [0, options.busy]
    cases = [(name, load) for _ in range(options.rounds) for name in POLICIES for load in loads]
    seconds: dict[tuple[str, int], list[float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        time_epochs({}, options, Path(folder))  # prepares the volumes
        for name, load in tqdm(cases, desc="runs"):
            with busy_cores(load):
                seconds.setdefault((name, load), []).extend(time_epochs(POLICIES[name], options, Path(folder)))
    print(make_table(seconds, loads))
    return 0


if __name__ == "__main__":
    sys.exit(main())
