# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""Post-processing: a volume's embedding, and its feature map where the patient is."""

from __future__ import annotations

import gzip
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import nibabel
import numpy as np
from monai.config import KeysCollection
from monai.transforms import MapTransform

from bundle.atomic import replace_file
from bundle.cells import valid_cells
from bundle.inference.output import OutputFolder

__all__ = ["CellStatisticsd", "SaveEmbeddingd", "SaveFeatureMapd"]


class CellStatisticsd(MapTransform):
    """Mean and standard deviation of the features over the cells of the body, and the number of these `cells`.

    A cell counts if at least half as much of it is body as of the volume's fullest cell.

    Args:
        keys: of the features, ``[C, d, h, w]``.
        cell: voxels of a cell on each axis.
    """

    def __init__(self, keys: KeysCollection = "pred", *, cell: Sequence[int]) -> None:
        super().__init__(keys)
        self.cell = tuple(cell)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        item = dict(data)
        body = valid_cells(item["foreground"][None] > 0, self.cell)[0, 0]
        features = item[self.first_key(item)].float().cpu()[:, body.cpu()].double()
        item["mean"], item["std"] = features.mean(1).float(), features.std(1, correction=0).float()
        item["cells"] = features.shape[1]
        return item


class SaveEmbeddingd(MapTransform):
    """Writes `mean` and `std` (float32 ``[C]``), `cells` and `spacing` (mm per axis, RAS) as npz.

    Args:
        output: the folder.
        keys: what to write.
    """

    def __init__(self, output: OutputFolder, keys: KeysCollection = ("mean", "std", "cells", "spacing")) -> None:
        super().__init__(keys)
        self.output = output

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        item = dict(data)
        path = self.output.embedding(item["name"])
        with replace_file(path) as temporary, temporary.open("wb") as file:
            arrays: dict[str, Any] = {str(key): np.asarray(item[key]) for key in self.key_iterator(item)}
            np.savez_compressed(file, **arrays)
        return {**item, "file": path.relative_to(self.output.path).as_posix()}


class SaveFeatureMapd(MapTransform):
    """Writes the features as NIfTI, channels last, with the affine from a cell's index to its centre in RAS mm.

    Cell 0 holds the voxels 0 to s - 1, so its centre is at voxel (s - 1) / 2.

    Args:
        output: the folder.
        keys: of the features, ``[C, d, h, w]``.
        cell: voxels of a cell on each axis.
        enabled: False writes nothing.
    """

    def __init__(
        self, output: OutputFolder, keys: KeysCollection = "pred", *, cell: Sequence[int], enabled: bool = True
    ) -> None:
        super().__init__(keys)
        self.output, self.cell, self.enabled = output, tuple(cell), enabled

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        item = dict(data)
        if not self.enabled:
            return item
        features = item[self.first_key(item)].float().cpu().numpy()
        image = nibabel.Nifti1Image(np.moveaxis(features, 0, -1), cell_affine(np.asarray(item["affine"]), self.cell))
        image.header.set_xyzt_units("mm")
        path = self.output.feature_map(item["name"])
        with replace_file(path) as temporary:
            temporary.write_bytes(gzip.compress(image.to_bytes(), compresslevel=6, mtime=0))
        return {**item, "feature_map": path.relative_to(self.output.path).as_posix()}


def cell_affine(affine: np.ndarray, cell: Sequence[int]) -> np.ndarray:
    """From that of the voxels, ``[4, 4]``, the affine of cells of `cell` voxels, by their centres."""
    size = np.asarray(cell, dtype=np.float64)
    to_voxels = np.diag([*size, 1.0])
    to_voxels[:3, 3] = (size - 1) / 2
    placed: np.ndarray = affine @ to_voxels
    return placed
