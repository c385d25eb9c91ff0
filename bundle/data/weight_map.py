# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""A user's map of what to hide more often: anatomy, vessels, lesions."""

from __future__ import annotations

import os
from collections.abc import Hashable, Mapping
from copy import copy
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from monai.config import KeysCollection
from monai.transforms import MapTransform, ResampleToMatch

from bundle.data.find import VOLUME_SUFFIXES
from bundle.data.names import without_ending
from bundle.data.printable import printable
from bundle.data.read import read_volume
from bundle.errors import UserError, VolumeError

__all__ = ["WeightMapd"]


class WeightMapd(MapTransform):
    """Reads a volume's map of weights, on the image's own grid, under the key `weight_map`; without a folder, nothing.

    The map of `a/b.nii.gz` is the file of the same name below `folder`, or one that differs in the ending; of the DICOM
    series `a/b` it is `a/b.nii.gz`. It is brought to the image's grid in space, so it may have another voxel size.

    Args:
        folder: of the maps, or None.
        keys: of the image.

    Raises:
        UserError: if there is no such folder.
        VolumeError: for a volume without a map, or with one that cannot be read, has values below 0, or has nothing
            above 0 where the volume is.
    """

    def __init__(self, folder: str | os.PathLike[str] | None = None, keys: KeysCollection = "image") -> None:
        super().__init__(keys)
        self.folder = None if folder is None else Path(folder)
        #: path below the folder, size and time of change of each map: another map is another result
        self.files: list[tuple[str, int, int]] = []
        if self.folder is not None:
            if not self.folder.is_dir():
                raise UserError(f"--weight_maps {folder} is no folder: give the one that holds the maps, or null")
            for file in sorted(self.folder.rglob("*")):
                if file.is_file():
                    state = file.stat()
                    self.files.append((str(file.relative_to(self.folder)), state.st_size, state.st_mtime_ns))

    def for_volume(self, name: str) -> WeightMapd:
        """Itself with the map of one volume alone: what that volume's key in a cache depends on.

        Args:
            name: of the volume.
        """
        if self.folder is None:
            return self
        alone = copy(self)
        alone.__dict__.pop("_by_name", None)
        found = self._find(name)
        alone.files = [] if found is None else [found]
        return alone

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        item = dict(data)
        if self.folder is None:
            return item
        name = str(item["name"])
        found = self._find(name)
        if found is None:
            raise VolumeError(name, f"has no map below --weight_maps {self.folder}", "add it or leave the volume out")
        image = item[self.first_key(item)]
        try:
            written = read_volume([str(self.folder / found[0])], name, constant=True)
        except VolumeError as error:
            raise VolumeError(name, f"has a map that {error.problem}", error.remedy) from error
        weights = ResampleToMatch(mode="bilinear", padding_mode="zeros")(written, image)
        if weights.min() < 0:
            raise VolumeError(name, "has weights below 0 in its map", "give weights from 0 up")
        if weights.max() <= 0:
            raise VolumeError(name, "has a map without a weight where the volume is", "look at the map's place in mm")
        item["weight_map"] = weights.to(torch.float32)
        return item

    @cached_property
    def _by_name(self) -> dict[str, tuple[str, int, int]]:
        return {printable(file[0]): file for file in self.files}  # a volume's name is printable, a file's need not

    def _find(self, name: str) -> tuple[str, int, int] | None:
        candidates = [name, *(f"{without_ending(name)}{ending}" for ending in VOLUME_SUFFIXES)]
        return next((self._by_name[name] for name in candidates if name in self._by_name), None)
