# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""Where prepared volumes live. No other file of the package opens one.

To add a store, write a class here or in a file beside this one, and give it a name in `open_store`.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch

from bundle.errors import UserError

__all__ = ["STORES", "Crop", "DamagedVolumeError", "Header", "PlainStore", "Store", "cut", "open_store"]

logger = logging.getLogger(__name__)

#: a range of voxels on each axis of a volume
Crop = tuple[slice, slice, slice]

#: folders that this process has cleaned
_swept: set[Path] = set()


class DamagedVolumeError(Exception):
    """A store cannot give a volume as it was written: bits have changed, or it is gone. It must be prepared again."""


class Header(NamedTuple):
    """What a run must know of a prepared volume before it reads the voxels.

    Attributes:
        modality: "CT" or "MR".
        size: voxels per axis, padding included.
        padded: whether the volume was smaller than the crop.
        notes: what the reader left out or resampled, or "".
        content: a digest of the volume's files and labels, or "" where the store does not keep it.
    """

    modality: str
    size: tuple[int, ...]
    padded: bool
    notes: str = ""
    content: str = ""

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Any]) -> Header:
        """The header of a volume's prepared tensors."""
        padded = not tensors["valid"][0, -1, -1, -1]  # padding is on both sides, and one more voxel on this one
        notes, content = (
            bytes(tensors[name].tolist()).decode() if name in tensors else "" for name in ("notes", "content")
        )
        return cls(tensors["modality"], tuple(tensors["image"].shape[1:]), padded, notes, content)


class Store(ABC):
    """Keeps the tensors of prepared volumes, each volume under a key.

    A volume is a mapping: `image` float32, `foreground` and `valid` uint8, all ``[C, D, H, W]``, `spacing` ``[3]``, the
    text `modality`, and what the task adds. A store is sent to the processes that load data, so it must pickle. Threads
    and processes write at the same time, each volume once or with equal content.
    """

    @abstractmethod
    def describe(self, key: str) -> Header | None:
        """The header of a volume; None if it is not there or is damaged, so that it is prepared again."""

    def verify(self, key: str) -> bool:
        """Whether a volume is there as it was written, by reading all of it if the store has checksums."""
        return self.describe(key) is not None

    @abstractmethod
    def read(self, key: str, crop: Crop | None = None, keys: Collection[str] | None = None) -> dict[str, Any]:
        """Reads a volume.

        Args:
            key: that it was written under.
            crop: the part to read of all tensors on the image's grid; None reads them whole. Boxes, labels and other
                tensors are not cut.
            keys: names of the tensors to read, where they are there; None reads all.

        Raises:
            DamagedVolumeError: if the volume is not as it was written, where the store can tell.
        """

    def look(self, key: str, keys: Collection[str]) -> Mapping[str, Any]:
        """Tensors to look at some places of: what is returned may read a place when it is asked for it.

        Here they are read whole. A store that reads a crop faster than a volume should give something that reads late.

        Args:
            key: that the volume was written under.
            keys: names of tensors on the image's grid.
        """
        return self.read(key, keys=keys)

    @abstractmethod
    def write(self, key: str, tensors: Mapping[str, Any]) -> None:
        """Keeps a volume as a whole, or raises an error and keeps nothing."""

    @staticmethod
    def report_damage(file: Path, error: Exception) -> None:
        """Says in the log that a volume will be prepared again."""
        logger.warning("%s is damaged (%s): preparing its volume again", file, error)


@dataclass(frozen=True)
class PlainStore(Store):
    """One uncompressed file of torch for each volume, mapped into memory: of a crop only its pages are read.

    It has no checksums: only damage to its header is seen.

    Args:
        folder: of the files; it is made if it is missing.
        memory_map: False reads the whole file for each crop, where a file system cannot map files well.
    """

    folder: Path
    memory_map: bool = True

    def file(self, key: str) -> Path:
        """The file of a volume."""
        return self.folder / f"{key}.pt"

    def describe(self, key: str) -> Header | None:
        if not self.file(key).exists():
            return None
        try:
            return Header.from_tensors(self.read(key))
        except Exception as error:  # noqa: BLE001  flipped bits in a pickle raise anything
            self.report_damage(self.file(key), error)
            return None

    def read(self, key: str, crop: Crop | None = None, keys: Collection[str] | None = None) -> dict[str, Any]:
        tensors: dict[str, Any] = torch.load(self.file(key), mmap=self.memory_map, weights_only=True)
        wanted = {name: value for name, value in tensors.items() if keys is None or name in keys}
        return wanted if crop is None else cut(wanted, crop, tensors["image"].shape[1:])

    def write(self, key: str, tensors: Mapping[str, Any]) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        if self.folder not in _swept:
            _swept.add(self.folder)
            _remove_leftovers(self.folder)
        # each writer has another name: processes and threads may prepare the same volume
        temporary = self.folder / f"{key}.{os.getpid()}.{threading.get_ident()}.part"
        try:
            torch.save(dict(tensors), temporary)
            temporary.replace(self.file(key))
        finally:
            temporary.unlink(missing_ok=True)


def _remove_leftovers(folder: Path) -> None:
    """Removes what killed writers left: temporary files that nobody has changed for ten minutes."""
    for file in folder.glob("*.part"):
        with contextlib.suppress(OSError):  # another process may be faster
            if time.time() - file.stat().st_mtime > 600:
                file.unlink()


def cut(tensors: Mapping[str, Any], crop: Crop, size: Sequence[int]) -> dict[str, Any]:
    """The crop of all tensors on a grid of `size` voxels, copied; the other values as they are."""
    place = (slice(None), *crop)
    return {
        name: value[place].clone() if _is_on_grid(value, size) else value  # the copy is small, the volume may go
        for name, value in tensors.items()
    }


def _is_on_grid(value: object, size: Sequence[int]) -> bool:
    return isinstance(value, torch.Tensor) and value.ndim == 4 and tuple(value.shape[1:]) == tuple(size)


#: names that `VolumeSet` takes
STORES = ("blosc2", "plain")


def open_store(store: str | Store, folder: Path) -> Store:
    """A store by its name in `STORES`, or the given one.

    Args:
        store: name, or a store.
        folder: of the cache, for a store by name.

    Raises:
        UserError: if there is no store of that name, or its folder is a file.
    """
    from bundle.stores.blosc2_store import Blosc2Store  # noqa: PLC0415 - it is made of what this file holds

    if isinstance(store, Store):
        return store
    if store not in STORES:
        raise UserError(f"--store {store!r} is not known: choose one of {', '.join(STORES)}")
    if folder.exists() and not folder.is_dir():
        raise UserError(f"--cache_dir {folder} is a file: give a folder")
    return Blosc2Store(folder) if store == "blosc2" else PlainStore(folder)
