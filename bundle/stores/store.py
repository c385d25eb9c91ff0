# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""What a store of prepared volumes promises. No file outside this folder opens a prepared volume."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

__all__ = ["Crop", "DamagedVolumeError", "Header", "Store", "cut"]

logger = logging.getLogger(__name__)

#: a range of voxels on each axis of a volume
Crop = tuple[slice, slice, slice]


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
    def report_damage(file: Path, error: BaseException) -> None:
        """Says in the log that a volume will be prepared again."""
        logger.warning("%s is damaged (%s): preparing its volume again", file, error)


def cut(tensors: Mapping[str, Any], crop: Crop, size: Sequence[int]) -> dict[str, Any]:
    """The crop of all tensors on a grid of `size` voxels, copied; the other values as they are."""
    place = (slice(None), *crop)
    return {
        name: value[place].clone() if _is_on_grid(value, size) else value  # the copy is small, the volume may go
        for name, value in tensors.items()
    }


def _is_on_grid(value: object, size: Sequence[int]) -> bool:
    return isinstance(value, torch.Tensor) and value.ndim == 4 and tuple(value.shape[1:]) == tuple(size)
