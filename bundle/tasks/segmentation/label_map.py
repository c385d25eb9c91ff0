# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""From a prepared volume's probabilities to a label map on the scan's own grid."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform
from torch import Tensor

from bundle.inference import OwnGrid, own_grid, write_nifti
from bundle.prediction import PredictionFolder
from bundle.tasks.segmentation.certainty import Certainty

__all__ = ["SaveLabelMapd", "SaveProbabilitiesd", "ToLabelMapd", "ToProbabilitiesd"]

#: planes of which the softmax is taken at a time
_PLANES = 8


class ToProbabilitiesd(MapTransform):
    """The softmax over the classes, in place, a few planes at a time: no second copy of a volume's is in memory.

    Args:
        keys: of logits ``[C, d, h, w]``, or of logarithms of probabilities.
    """

    def __init__(self, keys: KeysCollection = "pred") -> None:
        super().__init__(keys)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        item = dict(data)
        for key in self.key_iterator(item):
            for planes in item[key].split(_PLANES, dim=1):
                planes.copy_(planes.softmax(0))
        return item


class SaveProbabilitiesd(MapTransform):
    """Writes the probabilities on the scan's own grid: float32, the fourth axis is background and classes.

    A class is interpolated and written a slab at a time: no whole copy of it is in memory.

    Args:
        output: the folder.
        keys: of the probabilities, ``[C, d, h, w]``, background first.
        enabled: False writes nothing.
        device: where to interpolate.
    """

    def __init__(
        self,
        output: PredictionFolder,
        keys: KeysCollection = "pred",
        *,
        enabled: bool = True,
        device: torch.device | str = "cpu",
    ) -> None:
        super().__init__(keys)
        self.output, self.enabled, self.device = output, enabled, device

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        item = dict(data)
        if not self.enabled:
            return item
        probabilities, grid = item[self.first_key(item)], own_grid(item)
        path = self.output.probabilities(item["name"])
        write_nifti(
            path,
            self._parts(probabilities, item["affine"], grid),
            affine=grid.affine.numpy(),
            shape=(*grid.shape, len(probabilities)),
            dtype=np.dtype(np.float32),
        )
        return _with_file(item, path.relative_to(self.output.path).as_posix())

    def _parts(self, probabilities: Tensor, affine: Tensor, grid: OwnGrid) -> Iterator[np.ndarray]:
        for number, channel in enumerate(probabilities.split(1)):
            outside = [float(number == 0)]
            for _, slab in grid.slabs(channel, affine, outside=outside, device=self.device):
                yield slab[0].cpu().numpy()


class ToLabelMapd(MapTransform):
    """The class with the highest probability at each voxel of the scan's own grid, as its value in label maps.

    Probabilities are interpolated linearly, a slab at a time; where the scan was cropped away is background.

    Args:
        keys: of the probabilities, ``[C, d, h, w]``, background first. Becomes a `MetaTensor` ``[1, D, H, W]`` of whole
            numbers with the scan's affine; the probabilities' memory, which can be gigabytes, is given free. Beside it
            `certainty` has that of each class by its name.
        classes: value in the label maps by the name of each class, in the order of the channels.
        device: where to interpolate.

    Example:
        >>> import torch
        >>> from bundle.tasks.segmentation import ToLabelMapd
        >>> background = torch.tensor([0.9, 0.2, 0.0]).view(1, 3, 1, 1)  # its probability at three voxels 2 mm apart
        >>> item = {"pred": torch.cat([background, 1 - background]), "affine": torch.diag(torch.tensor([2.0, 1, 1, 1]))}
        >>> item |= {"own_affine": torch.eye(4), "own_shape": (5, 1, 1)}
        >>> ToLabelMapd(classes={"liver": 6})(item)["pred"].flatten().tolist()
        [0, 0, 6, 6, 6]
    """

    def __init__(
        self, keys: KeysCollection = "pred", *, classes: Mapping[str, int], device: torch.device | str = "cpu"
    ) -> None:
        super().__init__(keys)
        self.names, self.values = tuple(classes), (0, *classes.values())
        self.dtype = label_dtype(self.values)
        self.device = device

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        item = dict(data)
        grid = own_grid(item)
        for key in self.key_iterator(item):
            probabilities = item[key]
            outside = [1.0] + [0.0] * (len(probabilities) - 1)
            kind = torch.uint8 if self.dtype == np.uint8 else torch.int32
            labels = torch.empty((1, *grid.shape), dtype=kind)
            values = torch.tensor(self.values, dtype=kind, device=self.device)
            certainty = Certainty(len(self.values))
            for part, slab in grid.slabs(probabilities, item["affine"], outside=outside, device=self.device):
                labels[0, :, :, part] = values[slab.argmax(0)].cpu()
                certainty.add(slab)
            probabilities.untyped_storage().resize_(0)  # the engine keeps the tensor until the scan is done
            item[key] = MetaTensor(labels, affine=grid.affine)
            item["certainty"] = dict(zip(self.names, certainty.values()))
        return item


class SaveLabelMapd(MapTransform):
    """Writes the label map as NIfTI, in the smallest type that holds all classes.

    Args:
        output: the folder.
        keys: of the label map, ``[1, D, H, W]`` with its affine.
        classes: value in the label maps by the name of each class.
    """

    def __init__(self, output: PredictionFolder, keys: KeysCollection = "pred", *, classes: Mapping[str, int]) -> None:
        super().__init__(keys)
        self.output, self.dtype = output, label_dtype((0, *classes.values()))

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        item = dict(data)
        labels = item[self.first_key(item)]
        path = self.output.label_map(item["name"])
        write_nifti(
            path,
            (np.asarray(labels[0, :, :, plane]) for plane in range(labels.shape[3])),
            affine=np.asarray(labels.affine, dtype=np.float64),
            shape=tuple(labels.shape[1:]),
            dtype=self.dtype,
        )
        return _with_file(item, path.relative_to(self.output.path).as_posix())


def label_dtype(values: tuple[int, ...]) -> np.dtype[Any]:
    """The smallest type of whole numbers that holds the values."""
    return np.result_type(*(np.min_scalar_type(value) for value in values))


def _with_file(item: dict[Hashable, Any], file: str) -> dict[Hashable, Any]:
    return {**item, "files": [*item.get("files", []), file]}
