# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""The volumes to embed, under the names that their results will have."""

from __future__ import annotations

import logging
import os
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import PurePath
from typing import Any

from torch.utils.data import Dataset

from bundle.data import FoundVolume, find_volumes, skipped_because
from bundle.data.names import name_digest, without_ending, without_paths

__all__ = ["VolumeDataset", "list_volumes"]

logger = logging.getLogger(__name__)


def list_volumes(dataset_dir: str | os.PathLike[str], *, hash_names: bool = False) -> list[FoundVolume]:
    """Finds volumes and names each by its path below the folder, or by a digest of that.

    A name is a path below the output folder, too: it loses its ending unless two volumes differ in nothing else, and
    what would lead out of the folder.

    Args:
        dataset_dir: as for `bundle.data.find_volumes`.
        hash_names: the first 16 digits of the path's sha256 instead of the path. The same path has the same digest,
            so whoever can guess a path can recognise it.
    """
    found = find_volumes(dataset_dir)
    if hash_names:
        return [replace(volume, name=name_digest(volume.name)) for volume in found]
    short = [_inside(without_ending(volume.name)) for volume in found]
    names = [name if n == 1 else _inside(volume.name) for volume, name, n in _counted(found, short)]
    names = [name if n == 1 else f"{name} {name_digest(volume.name)}" for volume, name, n in _counted(found, names)]
    return [replace(volume, name=name) for volume, name in zip(found, names, strict=True)]


def _counted(found: Sequence[FoundVolume], names: Sequence[str]) -> list[tuple[FoundVolume, str, int]]:
    counts = Counter(name.lower() for name in names)  # some file systems do not tell cases apart
    return [(volume, name, counts[name.lower()]) for volume, name in zip(found, names, strict=True)]


def _inside(name: str) -> str:
    """A json may list "../a.nii" or "/a.nii"."""
    path = PurePath(name)
    return str(PurePath(*(part for part in path.parts if part not in ("..", path.anchor)))) or "volume"


class VolumeDataset(Dataset[dict[str, Any]]):
    """Prepared volumes; for one that cannot be used, its name, the `problem` and the `remedy` instead.

    Args:
        data: volumes to prepare.
        transform: from `image` (a list of files), `name` and `modality` to the network's input.
    """

    def __init__(self, *, data: Sequence[FoundVolume], transform: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
        self.data, self.transform = list(data), transform

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> dict[str, Any]:
        volume, start = self.data[index], time.perf_counter()
        try:
            item = self.transform({"image": list(volume.files), "name": volume.name, "modality": volume.modality})
        except Exception as error:  # noqa: BLE001  one broken volume must not end the run
            skipped = skipped_because(volume.name, error)
            problem = without_paths(skipped.problem, volume, volume.name)
            return {"name": volume.name, "problem": problem, "remedy": skipped.remedy}
        notes = item.pop("notes", None)
        if notes is not None:
            logger.warning("%s: %s", volume.name, bytes(notes.tolist()).decode())
        return {**item, "seconds": time.perf_counter() - start}
