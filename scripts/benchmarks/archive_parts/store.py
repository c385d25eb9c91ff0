# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""The stores of prepared volumes against each other: bytes, crops a second, bytes that come from the disk.

Times are those of the processor, so that what else runs on the machine matters less. Bytes from the disk are those that
the system says this process has made it read (/proc/self/io), after the files were dropped from the page cache.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import torch
from archive_parts.context import Context
from monai.bundle import ConfigParser

from bundle.data import Blosc2Store, CropDataset, PlainStore, Store, VolumeSet, find_scans
from bundle.data.preparation import Preparation, modules_to_load, prepare_all
from bundle.processes import run_in_processes

__all__ = ["run"]

_ROOT = Path(__file__).resolve().parents[3]
_STORES: dict[str, Callable[[Path], Store]] = {"plain": PlainStore, "blosc2": Blosc2Store}


def transforms_of_training(crop: int) -> tuple[Any, Any]:
    """What configs/train.yaml does to a volume once, and to each crop."""
    parser = ConfigParser(ConfigParser.load_config_file(_ROOT / "configs/train.yaml"))
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


def resident_bytes() -> int:
    """Of this process."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


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
            times[row, number] = seconds(partial(_read, dataset, draws))
    return [
        {"crops_per_cpu_second": draws / float(best), "mb_from_disk": c / 1e6}
        for best, c in zip(times.min(axis=1), cold)
    ]


def _read(dataset: CropDataset, draws: int) -> None:
    for draw in range(draws):
        dataset[draw]


def time_preparation(dataset_dir: Path, folder: Path, transform: Any, processes: int) -> float:
    """Seconds of the clock that so many processes take."""
    shutil.rmtree(folder, ignore_errors=True)
    started = time.monotonic()
    preparation = Preparation(transform, Blosc2Store(folder))
    prepare_all(find_scans(dataset_dir), preparation, workers=processes, worth_processes=0, quiet=True)
    return time.monotonic() - started


def measure_preparation(dataset_dir: Path, folder: Path, transform: Any, processes: int) -> dict[str, Any]:
    """What several processes gain: of the volumes of a folder, and of all of them twice.

    The server that forks the processes loads MONAI once, for one process as for several. So its seconds are told apart.
    A volume is prepared by one process. So the largest one bounds the gain: `speed_up_at_most`.
    """
    of_each = []
    preparation = Preparation(transform, Blosc2Store(folder / "each"))
    for _ in range(2):  # the second one, without what is loaded on the way
        of_each = [seconds(partial(preparation, found)) for found in find_scans(dataset_dir)]
    twice = folder / "twice"
    for volume in find_scans(dataset_dir):
        for number in range(2):
            copy = twice / f"{number}_{volume.name}"
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.symlink_to(Path(volume.files[0]).absolute())
    started = time.monotonic()
    list(run_in_processes(abs, [1], processes=1, preload=modules_to_load(itk=True)))
    result: dict[str, Any] = {"start_up_seconds": time.monotonic() - started, "load": os.getloadavg()[0]}
    result["speed_up_at_most"] = min(processes, sum(of_each) / max(of_each))
    for name, volumes in (("once", dataset_dir), ("twice", twice)):
        runs = [time_preparation(volumes, folder / "again", transform, count) for count in (1, processes)]
        result[name] = {"seconds": runs, "speed_up": runs[0] / runs[1]}
    return result


def measure_stores(
    dataset_dir: Path, folder: Path, *, crop: int = 96, draws: int = 110, processes: int = 0
) -> dict[str, Any]:
    """Both stores of the volumes of a folder, their ratio and, if asked, what several processes gain."""
    torch.set_num_threads(1)
    transform, of_crops = transforms_of_training(crop)
    stores: dict[str, Store] = {name: kind(folder / name) for name, kind in _STORES.items()}
    datasets, sizes = [], {}
    for name, store in stores.items():
        volumes = VolumeSet(dataset_dir=dataset_dir, transform=transform, cache_dir=folder, store=store, val_fraction=0)
        datasets.append((CropDataset(data=volumes.training, transform=of_crops), folder / name))
        sizes[name] = sum(file.stat().st_size for file in (folder / name).iterdir())
    measured = {
        name: {"bytes": sizes[name], **row} for name, row in zip(stores, measure_reading(datasets, draws), strict=True)
    }
    plain, packed = measured["plain"], measured["blosc2"]
    result: dict[str, Any] = {**measured, "ratio": {key: packed[key] / plain[key] for key in plain}}
    if processes:
        result["preparation"] = measure_preparation(dataset_dir, folder / "prepared", transform, processes)
    return result


def measure_memory(folder: Path, count: int) -> dict[str, float]:
    """Megabytes that this process holds after a tenth of so many small volumes, and after all of them."""
    random = np.random.default_rng(0)
    for number in range(count):
        part = folder / ("first" if number < count // 10 else "rest")
        part.mkdir(parents=True, exist_ok=True)
        values = random.integers(-1000, 1000, (48, 48, 48)).astype(np.int16)
        nibabel.save(nibabel.Nifti1Image(values, np.eye(4)), part / f"ct_{number:04d}.nii.gz")
    preparation = Preparation(transforms_of_training(32)[0], Blosc2Store(folder / "store"))
    held = []
    for name in ("first", "rest"):
        prepare_all(find_scans(folder / name), preparation, workers=1, quiet=True)
        held.append(resident_bytes() / 1e6)
    return {"volumes": count, "after a tenth, MB": held[0], "after all, MB": held[1], "growth": held[1] / held[0] - 1}


def run(context: Context) -> dict[str, Any]:
    """The figures of `archive.py`."""
    draws = max(11, round(110 * context.scale))
    figures = measure_stores(_ROOT / "data/volumes", context.work / "stores", draws=draws, processes=context.processes)
    return {**figures, "memory": measure_memory(context.work / "many", max(20, round(1000 * context.scale)))}
