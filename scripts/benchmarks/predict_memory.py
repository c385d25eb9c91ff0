# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""Measures how much memory the prediction of a large CT takes, by configs/predict_segmentation.yaml.

    python scripts/benchmarks/predict_memory.py
    python scripts/benchmarks/predict_memory.py --size 256 256 200 --num_workers 1

The scan is made up, of 512 x 512 x 900 voxels; the network is a SegResNetDS with random weights for 15 classes at
1.5 mm. It is narrow, so that a CPU is done in minutes: the memory is that of the volume and its probabilities, and of
the windows in the network, which a wider network makes larger (`--filters`). Printed is the peak of the largest process
(`resource.getrusage`) and, once a second, the sum over all processes with shared pages counted once.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import nibabel
import numpy as np
import torch
from monai.networks.nets import SegResNetDS

from bundle.weights import ModelFiles

ROOT = Path(__file__).resolve().parents[2]


def make_scan(path: Path, size: tuple[int, int, int], spacing: tuple[float, ...]) -> None:
    """A body of 80 % of the field of view in air; int16."""
    generator = np.random.default_rng(0)
    plane = np.full(size[:2], -1000, dtype=np.int16)
    d, h = (n // 10 for n in size[:2])
    voxels = np.empty(size, dtype=np.int16)
    for index in range(size[2]):
        plane[d:-d, h:-h] = generator.integers(0, 8, (size[0] - 2 * d, size[1] - 2 * h)) * 20
        voxels[:, :, index] = plane
    nibabel.save(nibabel.Nifti1Image(voxels, np.diag([*spacing, 1.0])), path)


def make_model(folder: Path, classes: int, filters: int, crop: int) -> None:
    """A fine-tuned run's `model.pt` and `model.json`."""
    arguments = {"init_filters": filters, "blocks_down": [1, 1, 1, 1], "in_channels": 1, "out_channels": classes + 1}
    about = {
        "task": "segmentation",
        "network": {"name": "SegResNetDS", **arguments},
        "outputs": "channel 0 is the background",
        "classes": {f"class {number}": number for number in range(1, classes + 1)},
        "in_channels": 1,
        "crop_size": [crop] * 3,
        "spacing": [1.5, 1.5, 1.5],
        "modality": "CT",
        "ct_window": [-1000, 1000],
        "mr_percentiles": [0.5, 99.5],
        "mirror_axes": [],
    }
    torch.manual_seed(0)
    ModelFiles(folder / "model.pt").write(SegResNetDS(**arguments).state_dict(), about)


def descendants(process: int) -> Iterator[int]:
    """A process and all that it has started."""
    yield process
    for task in Path(f"/proc/{process}/task").iterdir():
        for child in (task / "children").read_text().split():
            yield from descendants(int(child))


def memory(process: int) -> int:
    """Bytes of a process and its descendants that are in memory, shared ones once."""
    total = 0
    with contextlib.suppress(OSError):  # one has just ended
        for each in descendants(process):
            lines = Path(f"/proc/{each}/smaps_rollup").read_text().splitlines()
            total += next(int(line.split()[1]) for line in lines if line.startswith("Pss:")) * 1024
    return total


def predict(folder: Path, options: argparse.Namespace) -> tuple[int, int, float]:
    """Runs the config; the peak of the largest process and of all together in bytes, and the seconds."""
    given = {"model": folder / "run", "dataset_dir": folder / "scan.nii", "output_dir": folder / "out"}
    given |= {"device": options.device, "num_workers": options.num_workers, "overlap": options.overlap}
    config = ROOT / "configs/predict_segmentation.yaml"
    command = [sys.executable, "-m", "monai.bundle", "run", "--config_file", str(config), "--bundle_root", str(ROOT)]
    command += [text for key, value in given.items() for text in (f"--{key}", str(value))]
    start, most = time.perf_counter(), 0
    with (folder / "log.txt").open("w") as log:
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=environment)
        while process.poll() is None:  # reading costs time itself
            most = max(most, memory(process.pid))
            time.sleep(1)
    seconds = time.perf_counter() - start
    if process.returncode or not (folder / "out/label_maps/scan.nii.gz").is_file():
        sys.exit((folder / "log.txt").read_text()[-3000:])
    return resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024, most, seconds


def main() -> None:
    """Makes scan and model, predicts, prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, nargs=3, default=(512, 512, 900))
    parser.add_argument("--spacing", type=float, nargs=3, default=(0.8, 0.8, 1.0), help="mm")
    parser.add_argument("--classes", type=int, default=15)
    parser.add_argument("--filters", type=int, default=4, help="of the network's first level")
    parser.add_argument("--crop", type=int, default=96)
    parser.add_argument("--overlap", type=float, default=0.25)
    parser.add_argument("--num_workers", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_scan(folder / "scan.nii", tuple(options.size), tuple(options.spacing))
        make_model(folder / "run", options.classes, options.filters, options.crop)
        largest, together, seconds = predict(folder, options)
    print(vars(options))
    print(f"{largest / 1e9:.2f} GB in the largest process, {together / 1e9:.2f} GB in all together, {seconds:.0f} s")


if __name__ == "__main__":
    main()
