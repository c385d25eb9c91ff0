# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""Prepared volumes as they are, one file of torch for each."""

from __future__ import annotations

import pickle
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from bundle.atomic import replace_file
from bundle.stores.store import Crop, DamagedVolumeError, Header, Store, cut

__all__ = ["PlainStore", "load_file"]


@dataclass(frozen=True)
class PlainStore(Store):
    """One uncompressed file of torch for each volume, mapped into memory: of a crop only its pages are read.

    It has no checksums: only damage to its header, and a file that is gone, is seen.

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
            self.report_damage(self.file(key), error if error.__cause__ is None else error.__cause__)
            return None

    def read(self, key: str, crop: Crop | None = None, keys: Collection[str] | None = None) -> dict[str, Any]:
        tensors = load_file(self.file(key), memory_map=self.memory_map)
        wanted = {name: value for name, value in tensors.items() if keys is None or name in keys}
        return wanted if crop is None else cut(wanted, crop, tensors["image"].shape[1:])

    def write(self, key: str, tensors: Mapping[str, Any]) -> None:
        with replace_file(self.file(key)) as temporary:
            torch.save(dict(tensors), temporary)


def load_file(file: Path, *, memory_map: bool = False) -> dict[str, Any]:
    """What a file of torch holds.

    Raises:
        DamagedVolumeError: if it is gone, or no such file.
    """
    try:
        loaded: dict[str, Any] = torch.load(file, mmap=memory_map, weights_only=True)
    except (FileNotFoundError, EOFError, pickle.UnpicklingError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "unable to " in str(error) and file.exists():
            raise  # the machine refuses: no memory to map it, or too many open files
        first, *_ = str(error).splitlines() or [type(error).__name__]
        raise DamagedVolumeError(f"{file}: {first}") from error
    return loaded
