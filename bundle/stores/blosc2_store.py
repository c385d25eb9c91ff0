# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""Prepared volumes, compressed in chunks that can be read apart, each with a checksum."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Collection, Mapping
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bundle.atomic import replace_file
from bundle.stores.chunk_file import ChunkFile, DamagedFileError, write_chunk_file
from bundle.stores.codings import Coding, encode
from bundle.stores.store import Crop, DamagedVolumeError, Header, Store

__all__ = ["Blosc2Store"]

#: chunks of a file that were read
_Kept = dict[tuple[str, int], Any]


@dataclass(frozen=True)
class Blosc2Store(Store):
    """One file for each volume, compressed in chunks: of a crop only the chunks that it touches are read.

    A volume takes about a fifth of the bytes that `PlainStore` needs. Masks are kept as bits. An image with at most
    65,536 different values comes back as it was: any CT and most MR on the grid that they were scanned on. A resampled
    image has more. A CT then stays float32 and is exact as well. An MR is rounded to 65,535 equal steps between its
    lowest and its highest value, so that no voxel is off by more than half a step; `find_error` tells how much that is.

    Every byte has a checksum. `read` raises `DamagedVolumeError` where one does not fit. `describe` looks at the header
    only. But it verifies all of a file that somebody has written to or copied since, as its time of change tells.

    Files are opened for each read and never mapped into memory. No thread and no open file is kept, so that processes
    may be forked or spawned at any time, and a slow network mount sees few, large reads.

    Args:
        folder: of the files; it is made if it is missing.
        exact: modalities that are never rounded; ``()`` also rounds a resampled CT, to 0.016 HU in the default window,
            and halves its size.

    Example:
        >>> import tempfile, torch
        >>> from bundle.data import Blosc2Store
        >>> folder = tempfile.TemporaryDirectory()
        >>> store = Blosc2Store(folder.name)
        >>> image = torch.randint(-1000, 1000, (1, 32, 32, 32)) / 1000
        >>> mask = torch.ones(1, 32, 32, 32, dtype=torch.uint8)
        >>> spacing = torch.ones(3)
        >>> store.write("a", {"image": image, "valid": mask, "spacing": spacing, "modality": "CT"})
        >>> crop = (slice(0, 8), slice(8, 16), slice(30, 32))
        >>> torch.equal(store.read("a", crop)["image"], image[:, 0:8, 8:16, 30:32])
        True
    """

    folder: Path | str
    exact: tuple[str, ...] = ("CT",)

    def file(self, key: str) -> Path:
        """The file of a volume."""
        return Path(self.folder) / f"{key}.b2v"

    def describe(self, key: str) -> Header | None:
        path = self.file(key)
        try:
            with closing(ChunkFile(path)) as file:
                if path.stat().st_mtime_ns != file.facts["written"] * 10**9:
                    file.verify()
                facts = file.facts
        except FileNotFoundError:
            return None
        except DamagedFileError as error:
            self.report_damage(path, error)
            return None
        return Header(**{**{name: facts[name] for name in Header._fields}, "size": tuple(facts["size"])})

    def verify(self, key: str) -> bool:
        path = self.file(key)
        try:
            with closing(ChunkFile(path)) as file:
                file.verify()
        except FileNotFoundError:
            return False
        except DamagedFileError as error:
            self.report_damage(path, error)
            return False
        return True

    def find_error(self, key: str) -> float:
        """How far a voxel of the image may be from what was prepared, in units of the prepared image."""
        with closing(ChunkFile(self.file(key))) as file:
            return max(coding.error for coding in _codings(file, "image"))

    def read(self, key: str, crop: Crop | None = None, keys: Collection[str] | None = None) -> dict[str, Any]:
        return self._read(key, crop, keys)

    def _read(
        self, key: str, crop: Crop | None, keys: Collection[str] | None, kept: _Kept | None = None
    ) -> dict[str, Any]:
        path = self.file(key)
        try:
            with closing(ChunkFile(path, kept)) as file:
                lists: dict[str, int] = file.facts.get("lists", {})
                wanted = {*file.facts["values"], *file.facts["tensors"], *lists}
                wanted = wanted if keys is None else wanted & set(keys)
                values = {name: value for name, value in file.facts["values"].items() if name in wanted}
                names = [name for name in file.facts["tensors"] if name in wanted]
                values |= {
                    name: [torch.from_numpy(file.read(f"{name}/item/{i}")) for i in range(count)]
                    for name, count in lists.items()
                    if name in wanted
                }
                return values | {name: _read_tensor(file, name, crop) for name in names}
        except (DamagedFileError, FileNotFoundError) as error:
            raise DamagedVolumeError(f"{path}: {error}") from error

    def look(self, key: str, keys: Collection[str]) -> Mapping[str, Any]:
        kept: _Kept = {}
        return {name: _Places(partial(self._read, key, kept=kept), name) for name in keys}

    def write(self, key: str, tensors: Mapping[str, Any]) -> None:
        header = Header.from_tensors(tensors)
        arrays: dict[str, np.ndarray] = {}
        described: dict[str, Any] = {}
        lists: dict[str, int] = {}  # of tensors on no grid, such as the places of each class
        for name, value in tensors.items():
            if isinstance(value, torch.Tensor):
                on_grid = value.ndim == 4 and tuple(value.shape[1:]) == header.size
                exact = name != "image" or header.modality in self.exact
                described[name] = _add(arrays, name, value.numpy(), on_grid=on_grid, exact=exact)
            elif isinstance(value, list) and value and all(isinstance(item, torch.Tensor) for item in value):
                arrays |= {f"{name}/item/{i}": item.numpy() for i, item in enumerate(value)}
                lists[name] = len(value)
        written = int(time.time()) // 2 * 2  # whole, even seconds: every file system can keep them
        facts = {
            **header._asdict(),
            "written": written,
            "values": {name: value for name, value in tensors.items() if name not in described | lists},
            "tensors": described,
            "lists": lists,
        }
        with replace_file(self.file(key)) as temporary:
            with temporary.open("wb") as stream:
                write_chunk_file(stream, arrays, facts)
            os.utime(temporary, (written, written))


class _Places:
    """A tensor of a volume, of which places are read when they are asked for."""

    def __init__(self, read: Callable[[Crop, tuple[str]], dict[str, torch.Tensor]], name: str) -> None:
        self._read, self.name = read, name

    def __getitem__(self, place: tuple[slice, slice, slice, slice]) -> torch.Tensor:
        channels, d, h, w = place
        return self._read((d, h, w), (self.name,))[self.name][channels]


def _add(arrays: dict[str, np.ndarray], name: str, value: np.ndarray, *, on_grid: bool, exact: bool) -> dict[str, Any]:
    """Adds the arrays of a tensor, of each channel if it is on the image's grid; gives what is to be known of them."""
    if not on_grid:
        arrays[name] = value
        return {"channels": None}
    codings = []
    for number, channel in enumerate(value):
        coded = encode(channel, exact=exact)
        arrays[f"{name}/{number}"] = coded.numbers.view(bool) if coded.coding.kind == "bits" else coded.numbers
        if coded.table is not None:
            arrays[f"{name}/{number}/table"] = coded.table
        codings.append(vars(coded.coding))
    return {"channels": codings}


def _codings(file: ChunkFile, name: str) -> list[Coding]:
    return [Coding(**coding) for coding in file.facts["tensors"][name]["channels"]]


def _read_tensor(file: ChunkFile, name: str, crop: Crop | None) -> torch.Tensor:
    if file.facts["tensors"][name]["channels"] is None:
        return torch.from_numpy(file.read(name))
    channels = []
    for number, coding in enumerate(_codings(file, name)):
        table = file.read(f"{name}/{number}/table") if coding.kind == "levels" else None
        channels.append(coding.decode(file.read(f"{name}/{number}", crop, table)))
    return torch.from_numpy(channels[0][None] if len(channels) == 1 else np.stack(channels))
