# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""The stores of prepared volumes against each other: bytes, crops a second, bytes that come from the disk.

    python scripts/benchmarks/archive_parts/store.py --dataset_dir data/volumes --folder /tmp/stores --cores 2

Times are those of the processor, so that what else runs on the machine matters less. Bytes from the disk are those that
the system says this process has made it read (/proc/self/io), after the files were dropped from the page cache.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.bundle import ConfigParser

from bundle.data import Blosc2Store, CropDataset, PlainStore, Store, VolumeSet, find_scans
from bundle.data.preparation import Preparation, prepare_all
from bundle.errors import UserError

ROOT = Path(__file__).resolve().parents[3]


def transforms_of_training(crop: int) -> tuple[Any, Any]:
    """What configs/train.yaml does to a volume once, and to each crop."""
    parser = ConfigParser(ConfigParser.load_config_file(ROOT / "configs/train.yaml"))
    parser["crop_size"] = [crop] * 3
    return parser.get_parsed_content("prepare"), parser.get_parsed_content("train#preprocessing")


def drop_from_page_cache(folder: Path) -> None:
    """Makes the system forget what it keeps of the files."""
    for file in folder.iterdir():
        with file.open("rb") as stream:
            os.fsync(stream.fileno())
            os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def bytes_from_disk() -> int:
    """That this process has made the system read so far."""
    lines = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
    return int(lines["read_bytes"])


def seconds(work: Callable[[], object]) -> float:
    """Of the processor."""
    started = time.process_time()
    work()
    return time.process_time() - started


def measure_reading(datasets: Sequence[tuple[CropDataset, Path]], draws: int) -> list[dict[str, float]]:
    """Crops a second and megabytes of a crop from the disk, of each store in turn, so that the machine is the same."""
    times, cold = np.full((len(datasets), 5), np.inf), []
    for dataset, folder in datasets:
        drop_from_page_cache(folder)
        before = bytes_from_disk()
        for draw in range(draws):
            dataset[draw]
            drop_from_page_cache(folder)
        cold.append((bytes_from_disk() - before) / draws)
        for draw in range(draws):
            dataset[draw]
    for number in range(times.shape[1]):
        for row, (dataset, _) in enumerate(datasets):
            times[row, number] = seconds(lambda dataset=dataset: [dataset[draw] for draw in range(draws)])
    return [{"crops_per_cpu_second": draws / best, "mb_from_disk": c / 1e6} for best, c in zip(times.min(axis=1), cold)]


def measure_preparation(dataset_dir: Path, folder: Path, transform: Any, processes: int) -> float:
    """Seconds of the clock that so many processes take."""
    shutil.rmtree(folder, ignore_errors=True)
    started = time.monotonic()
    preparation = Preparation(transform, Blosc2Store(folder))
    prepare_all(find_scans(dataset_dir), preparation, workers=processes, worth_processes=0, quiet=True)
    return time.monotonic() - started


def main() -> None:
    """Prints what is measured as json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset_dir", type=Path, default=ROOT / "data/volumes")
    parser.add_argument("--folder", type=Path, required=True, help="for the prepared volumes; must not exist")
    parser.add_argument("--crop", type=int, default=96)
    parser.add_argument("--draws", type=int, default=110)
    parser.add_argument("--cores", type=int, default=0, help="also prepare with 1 and with so many processes")
    options = parser.parse_args()
    if options.folder.exists():
        raise UserError(f"--folder {options.folder} is there already: give a new one")
    torch.set_num_threads(1)
    transform, of_crops = transforms_of_training(options.crop)
    stores: dict[str, Store] = {name: kind(options.folder / name) for name, kind in _STORES.items()}
    datasets, sizes = [], {}
    for name, store in stores.items():
        volumes = VolumeSet(
            dataset_dir=options.dataset_dir, transform=transform, cache_dir=options.folder, store=store, val_fraction=0
        )
        datasets.append((CropDataset(data=volumes.training, transform=of_crops), options.folder / name))
        sizes[name] = sum(file.stat().st_size for file in (options.folder / name).iterdir())
    measured = {
        name: {"bytes": sizes[name], **row}
        for name, row in zip(stores, measure_reading(datasets, options.draws), strict=True)
    }
    plain, packed = measured["plain"], measured["blosc2"]
    result: dict[str, Any] = {**measured, "ratio": {key: packed[key] / plain[key] for key in plain}}
    if options.cores:
        runs = [
            measure_preparation(options.dataset_dir, options.folder / "again", transform, processes)
            for processes in (1, options.cores)
        ]
        result["preparation"] = {"seconds": runs, "speed_up": runs[0] / runs[1], "load": os.getloadavg()[0]}
    print(json.dumps(result, indent=2))


_STORES: dict[str, Callable[[Path], Store]] = {"plain": PlainStore, "blosc2": Blosc2Store}

if __name__ == "__main__":
    main()
