# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""What preparing the volumes of an index and training on them will take on this machine, measured on a sample."""

from __future__ import annotations

import logging
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from monai.bundle import ConfigParser

from bundle.data.names import name_digest
from bundle.data.printable import counted
from bundle.errors import UserError, user_error_in
from bundle.runs.checked_settings import check_settings, read_defaults

__all__ = ["Estimate"]

logger = logging.getLogger(__name__)

#: crops that are cut, for the time of one
_CROPS = 8
_CACHE = "cache"


class Estimate:
    """Prepares a few volumes as a training would, and times a step of it.

    Args:
        training: config files of the training, the base first.
        bundle_root: of the training.
        device: that the step is timed on.
        overrides: values of the training's config by their ids, such as {"crop_size": [64, 64, 64]}.
        hash_names: whether the log and the figures have digests of the volumes' names.
    """

    def __init__(
        self,
        *,
        training: Sequence[str],
        bundle_root: str = ".",
        device: str = "auto",
        overrides: Mapping[str, Any] | None = None,
        hash_names: bool = False,
    ) -> None:
        self.training = [training] if isinstance(training, str) else list(training)
        self.bundle_root, self.overrides = bundle_root, {"device": device, **(overrides or {})}
        self.hash_names = hash_names

    def __call__(self, index: Path, sample: Sequence[Mapping[str, Any]], voxels: int) -> dict[str, Any]:
        """The figures, by name; with the one entry `problem` if they cannot be measured.

        Args:
            index: file of the index.
            sample: the volumes to prepare, by the columns of the index, with `id`.
            voxels: of all volumes that can be used.
        """
        try:
            with tempfile.TemporaryDirectory(prefix="index_sample_") as folder:
                return self._measure(self._parser(index, sample, Path(folder)), sample, voxels, Path(folder) / _CACHE)
        except Exception as error:
            known = user_error_in(error)
            if known is None:
                raise
            return {"problem": str(known)}

    def _parser(self, index: Path, sample: Sequence[Mapping[str, Any]], folder: Path) -> ConfigParser:
        if missing := [file for file in self.training if not Path(file).is_file()]:
            raise UserError(f"--training {missing[0]} does not exist: give the config files of the training")
        parser = ConfigParser()
        parser.read_config(list(self.training))
        given = {
            "bundle_root": self.bundle_root,
            "val_fraction": 0,
            **self.overrides,
            "dataset_dir": str(index),
            "where": f"id IN ({', '.join(str(volume['id']) for volume in sample)})",
            "cache_dir": str(folder / _CACHE),
            "output_dir": str(folder / "run"),  # what a training writes before its first step is not wanted
        }
        if self.hash_names:
            given["hash_names"] = True
        for name, value in given.items():
            parser.set(value, name)
        check_settings(parser.get(), read_defaults([Path(file) for file in self.training]))
        return parser

    def _measure(
        self, parser: ConfigParser, sample: Sequence[Mapping[str, Any]], voxels: int, cache: Path
    ) -> dict[str, Any]:
        get = parser.get_parsed_content
        logger.info(
            "preparing %s and timing a training step, to tell what a training takes here; --sample 0 leaves it out",
            counted(len(sample), "volume"),
        )
        start = time.perf_counter()
        volumes = get("volumes")
        seconds = time.perf_counter() - start
        skipped = {volume.name for volume in volumes.skipped}
        called = name_digest if self.overrides.get("hash_names") or self.hash_names else str
        prepared = [v for v in sample if called(v["name"]) not in skipped]
        share = voxels / sum(v["columns"] * v["rows"] * v["slices"] for v in prepared)
        kept = sum(file.stat().st_size for file in cache.rglob("*") if file.is_file())
        dataset, batch, workers = get("train#dataset"), get("batch_size"), max(1, get("num_workers"))
        start = time.perf_counter()
        for draw in range(_CROPS):
            dataset[draw]
        crop = (time.perf_counter() - start) / _CROPS
        device = torch.device(get("run_device"))
        step = self._step(get, device, batch)
        return {
            "sample": len(prepared),
            "sample_skipped": len(skipped),
            "sample_voxels": sum(v["columns"] * v["rows"] * v["slices"] for v in prepared),
            "sample_megabytes": round(kept / 1e6, 2),
            "sample_seconds": round(seconds, 2),
            "disk_gigabytes": round(kept * share / 1e9, 3),
            "preparation_hours": round(seconds * share / 3600, 3),
            "device": str(device),
            "crop_size": list(get("checked_crop_size")),
            "batch_size": batch,
            "num_workers": workers,
            "seconds_per_crop": round(crop, 4),
            "seconds_per_step": round(step, 4),
            "timed_crops": _timed_crops(device, batch),
            "steps_per_second": round(1 / max(step, batch * crop / workers), 4),
        }

    def _step(self, get: Any, device: torch.device, batch: int) -> float:
        """Seconds of a step; on a CPU a step of the default size takes minutes, so that of one crop is scaled."""
        from bundle.training.cost import CostReport  # noqa: PLC0415 - all of training, which a second start does not need

        crops, crop_size = _timed_crops(device, batch), get("checked_crop_size")
        cost = CostReport(
            network=get("network"),
            masked_batch=get("masked_batch"),
            loss=get("loss"),
            crop_size=crop_size,
            batch_size=crops,
            steps_per_epoch=1,
        )
        size = "x".join(map(str, crop_size))
        logger.info("timing a step of %s of %s on %s", counted(crops, "crop"), size, device)
        return cost.seconds(device, repeats=1 if device.type == "cpu" else 2) * batch / crops


def _timed_crops(device: torch.device, batch: int) -> int:
    return 1 if device.type == "cpu" else batch
