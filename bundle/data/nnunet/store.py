# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""Crops of nnU-Net's preprocessed cases, read from nnU-Net's own files; beside them a few kilobytes for each case."""

from __future__ import annotations

import logging
import os
from collections.abc import Collection, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from bundle.atomic import replace_file
from bundle.data.names import name_digest
from bundle.data.nnunet.arrays import case_files, open_array, read_part
from bundle.data.nnunet.find import preprocessed_folder
from bundle.data.nnunet.plan import Plan
from bundle.errors import VolumeError
from bundle.stores.open_store import open_store
from bundle.stores.plain_store import load_file
from bundle.stores.store import Crop, Header, Store

__all__ = ["CaseStore"]

logger = logging.getLogger(__name__)

#: the foreground is kept in blocks of so many voxels per axis: it says where to crop, and need not be sharp
_BLOCK = 4


class CaseStore(Store):
    """Keeps of a preprocessed case what nnU-Net's file does not say, and reads its image from that file.

    Of other volumes, which have no `source`, all is kept, in a store by name.

    Args:
        folder: of the cache.
        dataset_dir: as for `find_cases`.
        plan: the one that the cases are preprocessed by.
        store: a name in `bundle.stores.STORES`, for other volumes.
    """

    def __init__(
        self, *, folder: str | os.PathLike[str], dataset_dir: str | os.PathLike[str], plan: Plan, store: str = "plain"
    ) -> None:
        self.folder, self.others = Path(folder), open_store(store, Path(folder))
        self.cases = preprocessed_folder(dataset_dir, plan)

    def describe(self, key: str) -> Header | None:
        if self.cases is None:
            return self.others.describe(key)
        if not self._record(key).is_file():
            return None
        try:
            return Header(**self._read_record(key)["header"])
        except Exception:  # noqa: BLE001  flipped bits raise anything
            logger.warning("%s is damaged: looking at its case again", self._record(key))
            return None

    def write(self, key: str, tensors: Mapping[str, Any]) -> None:
        if "source" not in tensors:
            self.others.write(key, tensors)
            return
        header, valid = Header.from_tensors(tensors), tensors["valid"][0] > 0
        begin, size = _box(valid)
        record = {
            "header": {**header._asdict(), "size": list(header.size)},
            "source": tensors["source"].clone(),
            "begin": begin,
            "size": size,
            "foreground": _coarse(tensors["foreground"]),
            "spacing": tensors["spacing"].clone(),
        }
        with replace_file(self._record(key)) as temporary, temporary.open("wb") as file:
            torch.save(record, file)

    def read(self, key: str, crop: Crop | None = None, keys: Collection[str] | None = None) -> dict[str, Any]:
        if self.cases is None:
            return self.others.read(key, crop, keys)
        record = self._read_record(key)
        size = record["header"]["size"]
        place = [range(count)[one] for one, count in zip(crop or (slice(None),) * 3, size, strict=True)]
        made = {
            "image": lambda: self._image(record, place),
            "valid": lambda: _valid(record, place),
            "foreground": lambda: _fine(record["foreground"], place),
            "spacing": lambda: record["spacing"],
            "modality": lambda: record["header"]["modality"],
        }
        return {name: make() for name, make in made.items() if keys is None or name in keys}

    def _record(self, key: str) -> Path:
        return self.folder / f"{key}.case.pt"

    def _read_record(self, key: str) -> dict[str, Any]:
        return load_file(self._record(key))

    @cached_property
    def _files(self) -> dict[str, Path]:
        """The file of each case, by the digest of its name: names stay out of the cache."""
        return {} if self.cases is None else {name_digest(name): file for name, file in case_files(self.cases).items()}

    def _image(self, record: Mapping[str, Any], place: list[range]) -> Tensor:
        digest = bytes(record["source"].tolist()).decode()
        try:
            array = open_array(self._files[digest])
            part = _overlap(record, place)
            image = torch.from_numpy(read_part(array, part))
        except (OSError, RuntimeError, ValueError, KeyError) as error:
            problem = f"cannot be read any more ({type(error).__name__})"  # whoever knows its name says it
            raise VolumeError("a preprocessed case", problem, "put the file back or start anew") from error
        return F.pad(image, _padding(record, place))  # with 0, as nnU-Net pads


def _box(valid: Tensor) -> tuple[list[int], list[int]]:
    """Where the case begins in the padded volume, and its voxels per axis."""
    lines = [valid.any(2).any(1), valid.any(2).any(0), valid.any(1).any(0)]
    begin = [int(line.to(torch.uint8).argmax()) for line in lines]
    return begin, [int(line.sum()) for line in lines]


def _overlap(record: Mapping[str, Any], place: list[range]) -> list[slice]:
    """The part of the case's own voxels that lies in a place of the padded volume."""
    return [
        slice(min(max(axis.start - begin, 0), size), max(min(axis.stop - begin, size), 0))
        for axis, begin, size in zip(place, record["begin"], record["size"], strict=True)
    ]


def _padding(record: Mapping[str, Any], place: list[range]) -> list[int]:
    """As `torch.nn.functional.pad` takes it: the last axis first."""
    ends = []
    for axis, part, begin in zip(place, _overlap(record, place), record["begin"], strict=True):
        before = max(begin - axis.start, 0) if part.stop > part.start else len(axis)
        ends.append((before, len(axis) - before - max(part.stop - part.start, 0)))
    return [voxels for pair in reversed(ends) for voxels in pair]


def _valid(record: Mapping[str, Any], place: list[range]) -> Tensor:
    part = _overlap(record, place)
    ones = torch.ones(1, *(max(one.stop - one.start, 0) for one in part), dtype=torch.uint8)
    return F.pad(ones, _padding(record, place))


def _coarse(foreground: Tensor) -> Tensor:
    """The mask in blocks, uint8: 1 where half of a block, or more, is foreground."""
    share = F.avg_pool3d(foreground.float(), _BLOCK, ceil_mode=True, count_include_pad=False)
    return (share >= 0.5).to(torch.uint8)


def _fine(coarse: Tensor, place: list[range]) -> Tensor:
    for axis, voxels in enumerate(place, 1):
        blocks = torch.arange(voxels.start, voxels.stop) // _BLOCK
        coarse = coarse.index_select(axis, blocks)
    return coarse
