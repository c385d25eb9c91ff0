# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""Label maps and findings, for fine-tuning."""

from __future__ import annotations

import logging
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform
from nibabel.orientations import aff2axcodes
from torch import Tensor

from bundle.data import PreparedVolume, read_volume
from bundle.data.grids import same_place, turn_volume, volume_grid
from bundle.data.label_maps import WHOLE, odd_values
from bundle.data.straighten import straighten
from bundle.errors import UserError, VolumeError

__all__ = [
    "LabelsInForegroundd",
    "ReadLabelMapd",
    "check_classes",
    "check_labelled",
    "check_validated",
    "report_unnamed",
    "unnamed_values",
]

logger = logging.getLogger(__name__)

#: so many values that no class has are told, and so many scans with one of them
_VALUES, _SCANS = 8, 3
_NO_MAP = "give whole numbers: it may be a map of probabilities, or have been resampled without nearest neighbour"


def check_classes(classes: Mapping[str, int]) -> int:
    """The number of classes with the background, for a network's last layer.

    Args:
        classes: value in the label maps by the name of each class; the background has none.

    Raises:
        UserError: if there is no class, two share a value, or a value is no whole number from 1 to 65535.
    """
    if not classes:
        raise UserError(
            "--classes is not given, and there is no dataset.json with labels: give each class its value in the label "
            "maps, such as {liver: 1}"
        )
    values = list(classes.values()) if isinstance(classes, Mapping) else []
    if not values or len(set(values)) < len(values) or not all(map(_is_value, values)):
        raise UserError(f"--classes {classes} does not fit: give each class its own value, such as {{liver: 1}}")
    if len(values) > 254:
        raise UserError(f"--classes names {len(values)} classes: at most 254 are possible")
    return len(values) + 1


def _is_value(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 < value < 65536


class ReadLabelMapd(MapTransform):
    """Reads a volume's label map: uint8 ``[1, D, H, W]``, 0 background, 1 the first of `classes`, 2 the second.

    Instead of one file there may be a mask for each structure, by its name. Where two masks overlap, the voxel belongs
    to the later one of `classes`. Values less than 1e-3 off a whole number are rounded. A map whose axes are stored in
    another order or direction than the image's, as where a converter has turned one of them, is turned. The map's
    `meta` has `other_values`, a tuple of the values that became background, for `unnamed_values`.

    Args:
        keys: of the file's name, or of the names of the masks by structure.
        classes: value in the file by the name of each class; other values become background. Of masks the names
            alone count.
        image_key: of the image that was read before, whose grid the map must have.

    Raises:
        VolumeError: for a map that cannot be read, is on another grid, or holds values that are no whole numbers; for a
            class without a mask, and for a mask with several values.

    Example:
        >>> import tempfile, nibabel, numpy, torch
        >>> from monai.data import MetaTensor
        >>> from bundle.tasks.segmentation import ReadLabelMapd
        >>> folder = tempfile.TemporaryDirectory()
        >>> file = f"{folder.name}/labels.nii.gz"
        >>> labels = numpy.zeros((4, 4, 4), dtype=numpy.uint8)
        >>> labels[0], labels[1], labels[2] = 6, 9, 3  # the liver, a tumour, and something else
        >>> nibabel.save(nibabel.Nifti1Image(labels, numpy.eye(4)), file)
        >>> item = {"image": MetaTensor(torch.rand(1, 4, 4, 4)), "label": file, "name": "scan"}
        >>> read = ReadLabelMapd(classes={"liver": 6, "tumour": 9})(item)
        >>> read["label"][0, :, 0, 0].tolist()
        [1, 2, 0, 0]
    """

    def __init__(self, keys: KeysCollection = "label", *, classes: Mapping[str, int], image_key: str = "image") -> None:
        super().__init__(keys)
        check_classes(classes)
        self.classes, self.image_key = dict(classes), image_key
        self.tells_others = True  # in the key of what is prepared: volumes of earlier versions lack their other values

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        item = dict(data)
        image, name = item[self.image_key], str(item["name"])
        for key in self.key_iterator(item):
            files = item[key]
            indices = torch.zeros((1, *image.shape[1:]), dtype=torch.uint8)
            labels = None if isinstance(files, Mapping) else _read_labels(str(files), image, name)
            for index, (structure, value) in enumerate(self.classes.items(), start=1):
                inside = _read_mask(files, structure, image, name) if labels is None else labels == value
                indices[inside] = index
            # the image's: from one rounded otherwise, resampling could make another number of voxels
            item[key] = MetaTensor(indices, affine=image.affine)
            others = () if labels is None else _distinct(labels[(indices == 0) & (labels != 0)])
            item[key].meta["other_values"] = others
        return item


def _read_labels(file: str, image: MetaTensor, name: str) -> Tensor:
    """The whole numbers of a label map, ``[1, D, H, W]``, on the image's grid."""
    written = read_volume([file], f"{name}, its label map {file}", constant=True)
    affine, shape = image.meta.get("own_grid", (np.asarray(image.affine), image.shape[1:]))
    labels = straighten(turn_volume(written, (tuple(shape), affine)), nearest=True)  # as the image was
    if not same_place(volume_grid(labels), volume_grid(image)):
        raise VolumeError(
            name,
            f"and its label map are not on one grid: {_describe_grid(image)} and {_describe_grid(written)}",
            "resample the label map to the image, nearest neighbour",
        )
    values = labels.as_tensor()
    whole = values.round()
    off = (values - whole).abs() > WHOLE
    if off.any():
        raise VolumeError(name, f"has a label map with {odd_values(values[off].numpy())}", _NO_MAP)
    return whole


def _distinct(values: Tensor) -> tuple[int, ...]:
    """The different values of whole numbers ``[N]``, by counting: sorting takes seconds."""
    numbers = values.numpy().astype(np.int64)
    if not numbers.size:
        return ()
    low, high = int(numbers.min()), int(numbers.max())
    found = np.flatnonzero(np.bincount(numbers - low)) + low if high - low < 2**24 else np.unique(numbers)
    return tuple(found.tolist())


def _read_mask(files: Mapping[str, str], structure: str, image: MetaTensor, name: str) -> Tensor:
    """Where a structure is, bool ``[1, D, H, W]``."""
    if structure not in files:
        raise VolumeError(
            name, f"has no mask of {structure} among its {len(files)}", "add an empty one, or leave the class out"
        )
    labels = _read_labels(files[structure], image, name)
    inside = labels != 0
    if labels[inside].unique().numel() > 1:
        raise VolumeError(name, f"has a mask of {structure} with several values", "give one mask for each structure")
    return inside


def _describe_grid(volume: MetaTensor) -> str:
    affine = np.asarray(volume.affine)
    size, axes = " x ".join(map(str, volume.shape[1:])), "".join(map(str, aff2axcodes(affine)))
    return f"{size} voxels, axes {axes}, affine {[[float(f'{value:.6g}') for value in row] for row in affine[:3]]}"


def check_labelled(volumes: Sequence[PreparedVolume], classes: Mapping[str, int]) -> Sequence[PreparedVolume]:
    """The same volumes, if every class is somewhere in them: none can be learnt that is not.

    Args:
        volumes: prepared, with the `label_cls_indices` that MONAI's `ClassesToIndicesd` gives.
        classes: value in the label maps by the name of each class.

    Raises:
        UserError: naming the classes that no volume has.
    """
    if not (absent := _absent(volumes, classes)):
        return volumes
    missing = ", ".join(f"{name} ({classes[name]})" for name in absent)
    held = unnamed_values(volumes)
    raise UserError(
        f"none of the {len(volumes)} training volumes has a voxel of {missing}{held and f', and {held}'}: correct the "
        "values in --classes, leave the class out, or raise the number of training volumes"
    )


def unnamed_values(volumes: Sequence[PreparedVolume]) -> str:
    """Which values the label maps hold that no class has, a clause, the rarest first; "" if there are none.

    That is often meant, as where one class of many is trained on. A value in few maps is more likely a mistake, so its
    scans are named.

    Args:
        volumes: prepared with `ReadLabelMapd`.
    """
    found: dict[int, list[str]] = {}
    for volume in volumes:
        for value in volume.load(keys=["other_values"]).get("other_values", ()):
            found.setdefault(int(value), []).append(volume.name)
    if not found:
        return ""
    count = len({name for names in found.values() for name in names})
    rarest = sorted(found.items(), key=lambda pair: (len(pair[1]), pair[0]))
    told = [f"{value} ({_scans(names, len(volumes))})" for value, names in rarest[:_VALUES]]
    told += [f"and {more} other{'s' * (more > 1)}"] if (more := len(rarest) - _VALUES) > 0 else []
    some = f"{count} of {len(volumes)} label maps hold" if len(volumes) > 1 else "the label map holds"
    return f"{some} values that no class has: {', '.join(told)}"


def report_unnamed(volumes: Sequence[PreparedVolume]) -> dict[str, str]:
    """Says in the log which values of the label maps no class has, and gives it for the run's summary.

    Args:
        volumes: all that are trained and validated on; one that is named twice counts once.
    """
    held = unnamed_values(list({volume.name: volume for volume in volumes}.values()))
    if not held:
        return {}
    logger.warning("%s; they count as background", held)
    return {"label values without a class": f"{held}; they count as background"}


def _scans(names: Sequence[str], total: int) -> str:
    if len(names) == total:
        return "all" if total > 1 else names[0]
    return ", ".join(names) if len(names) <= _SCANS else f"{len(names)} maps"


def check_validated(volumes: Sequence[PreparedVolume], classes: Mapping[str, int]) -> Sequence[PreparedVolume]:
    """The same volumes to validate on, if one of them has a class; a class that none has is said.

    Args:
        volumes: as for `check_labelled`.
        classes: as for `check_labelled`.

    Raises:
        UserError: if none has a class: the Dice is not defined then, and no epoch better than another.
    """
    absent = _absent(volumes, classes)
    if len(absent) == len(classes):
        raise UserError(
            f"none of the {len(volumes)} validation volumes has a voxel of any class, so no epoch can be chosen by its "
            "Dice: name others in a data list, raise --val_fraction, or give another --seed"
        )
    if absent:
        logger.warning("no validation volume has a voxel of %s: its Dice is not validated", ", ".join(absent))
    return volumes


def _absent(volumes: Sequence[PreparedVolume], classes: Mapping[str, int]) -> list[str]:
    """The classes that no volume has; volumes are read until all are found."""
    absent = dict(enumerate(classes, start=1))
    for volume in volumes:
        if not absent:
            break
        indices = volume.load(keys=["label_cls_indices"])["label_cls_indices"]
        absent = {index: name for index, name in absent.items() if not len(indices[index])}
    return [*absent.values()]


class LabelsInForegroundd(MapTransform):
    """Counts labelled voxels as foreground, so that cropping to it cuts off none: a dark lesion at the skin, say.

    Put it after the intensities have been normalised: they must not depend on labels.

    Args:
        keys: of the label map.
        foreground_key: of the mask.
    """

    def __init__(self, keys: KeysCollection = "label", foreground_key: str = "foreground") -> None:
        super().__init__(keys)
        self.foreground_key = foreground_key

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        item = dict(data)
        for key in self.key_iterator(item):
            foreground = item[self.foreground_key]
            inside = (foreground.as_tensor() > 0) | (item[key].as_tensor() > 0)
            item[self.foreground_key] = MetaTensor(inside.to(torch.uint8), affine=foreground.affine)
        return item
