# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""A volume prepared as for training, with what leads back to its file."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from monai.data import MetaTensor
from monai.transforms import Compose
from torch import Tensor

from bundle.data import FoundVolume, ReadVolumed, ToPlainTensorsd, find_scans
from bundle.data.find import VOLUME_SUFFIXES
from bundle.data.read import read_channels
from bundle.errors import UserError
from bundle.inference import OwnGrid

__all__ = ["WholeVolume", "find_inputs", "prepare_volume"]


@dataclass(frozen=True)
class WholeVolume:
    """A prepared volume that still knows its file's grid and units.

    Attributes:
        name: its path below the dataset's folder.
        modality: "CT" or "MR".
        original: float32 ``[1, D, H, W]``, on the grid of its file, also where its slices are tilted.
        image: float32 ``[1, d, h, w]``, prepared, with its own affine.
        foreground: bool ``[1, d, h, w]``.
        valid: bool ``[1, d, h, w]``, False where padded.
        spacing: of the prepared voxels, ``[3]``, in mm.
        offset: a prepared value is, in the file's units, ``value * scale + offset``.
        scale: see `offset`.
    """

    name: str
    modality: str
    original: MetaTensor
    image: MetaTensor
    foreground: Tensor
    valid: Tensor
    spacing: Tensor
    offset: float
    scale: float

    def in_units(self, values: Tensor) -> Tensor:
        """Prepared values in the file's units: HU for CT."""
        return values * self.scale + self.offset

    @property
    def grid(self) -> OwnGrid:
        """That of its file."""
        d, h, w = self.original.shape[1:]
        return OwnGrid(torch.as_tensor(self.original.affine, dtype=torch.float64), (d, h, w))

    def on_own_grid(self, prepared: Tensor, *, nearest: bool = False) -> Tensor:
        """From the prepared grid to that of the file, ``[1, D, H, W]`` float32; 0 outside the prepared volume.

        Args:
            prepared: ``[1, d, h, w]``, values or a mask.
            nearest: takes the nearest voxel, for masks; else interpolates linearly.
        """
        slabs = self.grid.slabs(prepared, self.image.affine, nearest=nearest)
        return torch.cat([slab for _, slab in slabs], 3)

    @property
    def unit(self) -> str:
        """What the file's values are measured in; MR has no unit."""
        return "HU" if self.modality == "CT" else "intensity"


def find_inputs(
    dataset_dir: str | os.PathLike[str], include: Sequence[str] | str = (), where: str = ""
) -> list[FoundVolume]:
    """The volumes of a folder or an MSD-style json, as for training, or a single file.

    Args:
        dataset_dir: as for `bundle.data.find_scans`, or a file.
        include: as for `bundle.data.find_scans`.
        where: as for `bundle.data.find_scans`.

    Raises:
        UserError: if there is none.
    """
    path = Path(dataset_dir)
    if path.is_file() and path.name.lower().endswith(VOLUME_SUFFIXES):
        return [FoundVolume(name=path.name, files=(str(path),))]
    return find_scans(path, include, where=where)


def prepare_volume(found: FoundVolume, prepare: Compose) -> WholeVolume:
    """Reads a volume and prepares it by the run's transforms, but keeps what `ToPlainTensorsd` drops.

    Args:
        found: the volume.
        prepare: the transforms under `prepare` of the run's config.

    Raises:
        VolumeError: if it cannot be used.
        UserError: if the transforms do not tell the way back to the file's units.
    """
    item = found.to_item()
    original: MetaTensor | None = None
    steps: Sequence[Any] = prepare.flatten().transforms
    for step in steps:
        if isinstance(step, ToPlainTensorsd):
            break
        item = step(item)
        if isinstance(step, ReadVolumed):
            original = _on_file_grid(item["image"], found, step)
    if original is None or "intensity" not in item:
        raise UserError(
            "the run's config.yaml prepares volumes without ReadVolumed or a normalization that can be undone: name a "
            "run that prepares them as configs/train.yaml does"
        )
    image: MetaTensor = item["image"]
    return WholeVolume(
        name=found.name,
        modality=item["modality"],
        original=original,
        image=image,
        foreground=torch.as_tensor(item["foreground"]).as_subclass(Tensor) > 0,
        valid=torch.as_tensor(item["valid"]).as_subclass(Tensor) > 0,
        spacing=torch.as_tensor(image.pixdim, dtype=torch.float32),
        **item["intensity"],
    )


def _on_file_grid(image: MetaTensor, found: FoundVolume, step: ReadVolumed) -> MetaTensor:
    """The voxels of the file as they are: what `step` has brought onto right angles is read again."""
    if "own_grid" not in image.meta:
        return image.clone()
    return read_channels([found.files, *found.channels], found.name, stacked=step.channels > 1)
