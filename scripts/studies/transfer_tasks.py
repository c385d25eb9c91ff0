# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""The labelled tasks of scripts/studies/transfer.py, cut from real volumes that no pre-training has seen.

There are few labelled volumes whose licence lets anyone fetch them, so a task is made of parts of volumes: training
parts of one side of a body, test parts of the other side, a gap between them.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import nibabel
import numpy as np
from monai.data import MetaTensor
from monai.transforms import FillHoles, ResampleToMatch
from nibabel.orientations import aff2axcodes

from bundle.errors import UserError

#: mm between the parts to train on and to test on
GAP = 10.0


@dataclass(frozen=True)
class Task:
    """A labelled task.

    Attributes:
        name: "brain" or "chest".
        title: for tables.
        classes: value in the label maps by the name of each class.
        labels: what part of the volume is labelled, by the name of the label budget.
    """

    name: str
    title: str
    classes: dict[str, int]
    labels: tuple[str, ...]


TASKS = {
    "brain": Task(
        "brain", "brain tissue in T1 MR (CSF, grey, white)", {"csf": 1, "grey": 2, "white": 3}, ("quarter", "half")
    ),
    "chest": Task(
        "chest",
        "chest CT (lung, ribs, shoulder, spine, back muscle)",
        {"lung": 1, "ribs": 2, "shoulder": 3, "spine": 4, "back_muscle": 5},
        ("half",),
    ),
}


def write_task(task: Task, labels: str, seed: int, data_dir: Path, folder: Path) -> Path:
    """Writes the volumes of a task, and the data list that names them.

    Which side is for training, and which quarter of it, changes with the seed; the other side is for testing. The brain
    task is tested on a head of another population besides.

    Args:
        task: one of `TASKS`.
        labels: "half", the volume up to the gap in the middle, or "quarter", the front or back half of that.
        seed: of the run.
        data_dir: where scripts/fetch_data.py --all has put its files.
        folder: where to write; what is there is used again.

    Returns:
        The data list.

    Raises:
        UserError: if a volume of the task has not been fetched.
    """
    side, front = ("left", "right")[seed % 2], ("front", "back")[seed // 2 % 2]
    name = f"{side}_{front}" if labels == "quarter" else side
    listed = folder / f"{task.name}_{name}.json"
    if listed.exists():
        return listed
    folder.mkdir(parents=True, exist_ok=True)
    image, label = _mni152(data_dir) if task.name == "brain" else _chest(data_dir)
    training = _write(image, label, folder / f"{task.name}_train_{name}", side, front if labels == "quarter" else "")
    other = "right" if side == "left" else "left"
    validation = [_write(image, label, folder / f"{task.name}_test_{other}", other, "")]
    if task.name == "brain":
        validation.append(_write(*_ixi(data_dir), folder / "brain_test_ixi", "", ""))
    modality = "MR" if task.name == "brain" else "CT"
    content = {
        part: [{**entry, "modality": modality} for entry in entries]
        for part, entries in (("training", [training]), ("validation", validation))
    }
    listed.write_text(json.dumps(content, indent=4) + "\n")
    return listed


def threshold_dice(image: np.ndarray, label: np.ndarray) -> list[float]:
    """Dice of the best that two intensity thresholds can do on a brain: midpoints between the true classes' medians.

    Args:
        image: intensities.
        label: 1 CSF, 2 grey, 3 white; other voxels are left out.
    """
    inside = label > 0
    values, truth = image[inside], label[inside]
    csf, grey, white = (np.median(values[truth == index]) for index in (1, 2, 3))
    found = 1 + (values > (csf + grey) / 2).astype(int) + (values > (grey + white) / 2)
    return [
        2 * float(((found == index) & (truth == index)).sum()) / float((found == index).sum() + (truth == index).sum())
        for index in (1, 2, 3)
    ]


def _write(image: MetaTensor, label: np.ndarray, path: Path, side: str, front: str) -> dict[str, str]:
    """Writes one part of a volume and its label map; gives their entry in the data list."""
    part = [slice(None)] * 3
    affine = np.asarray(image.affine)
    for where, axis_name in ((side, "LR"), (front, "PA")):
        if where:
            axis, codes = next((i, c) for i, c in enumerate(aff2axcodes(affine)) if c in axis_name)
            towards = {"left": "L", "right": "R", "front": "A", "back": "P"}[where]
            size, gap = image.shape[1 + axis], GAP / 2 / float(np.linalg.norm(affine[:3, axis]))
            at_end = codes == towards
            part[axis] = slice(int(np.ceil(size / 2 + gap)), None) if at_end else slice(None, int(size / 2 - gap))
    entry = {}
    for kind, array in (("image", image[0].numpy()), ("label", label.astype(np.uint8))):
        file = path.with_name(f"{path.name}_{kind}.nii.gz")
        nibabel.save(nibabel.Nifti1Image(array, affine).slicer[tuple(part)], file)
        entry[kind] = file.name
    return entry


def _load(file: Path) -> MetaTensor:
    if not file.is_file():
        raise UserError(f'{file} is missing: fetch it with "python scripts/fetch_data.py --all", or give --data_dir')
    image = nibabel.load(file)
    array = np.asarray(image.dataobj, dtype=np.float32)
    array = array[None] if array.ndim == 3 else np.moveaxis(array, -1, 0)
    return MetaTensor(array, affine=image.affine)


def _mni152(data_dir: Path) -> tuple[MetaTensor, np.ndarray]:
    image = _load(data_dir / "volumes/mr_brain_mni152.nii.gz")
    grey, white = (_load(data_dir / f"labels/mr_brain_mni152_{kind}.nii.gz")[0].numpy() for kind in ("grey", "white"))
    tissue = np.stack([255 - grey - white, grey, white]).argmax(0) + 1
    return image, tissue * (image[0].numpy() > 0)


def _ixi(data_dir: Path) -> tuple[MetaTensor, np.ndarray]:
    """The head of another population, with everything outside the brain removed, as it is from MNI152."""
    image = _load(data_dir / "evaluation/mr_head_ixi.nii.gz")
    maps = ResampleToMatch(mode="bilinear", padding_mode="zeros")(
        _load(data_dir / "evaluation/mr_head_ixi_tissue.nii.gz"), image
    ).numpy()
    grey, white, rest = maps
    near = _closed(grey + white > 0.1)
    brain = np.asarray(FillHoles()(near[None].astype(np.uint8)))[0] > 0
    tissue = (np.stack([rest, grey, white]).argmax(0) + 1) * brain
    return MetaTensor(image.as_tensor() * brain, affine=image.affine), tissue


def _closed(mask: np.ndarray, voxels: int = 9) -> np.ndarray:
    """Closes gaps narrower than twice `voxels` between the parts of a mask, by distances."""
    from scipy.ndimage import distance_transform_edt  # noqa: PLC0415  slow to import

    grown = distance_transform_edt(~mask) <= voxels
    closed: np.ndarray = distance_transform_edt(grown) > voxels
    return closed


def _chest(data_dir: Path) -> tuple[MetaTensor, np.ndarray]:
    """Organs that both sides have, from the numbering of TotalSegmentator."""
    image = _load(data_dir / "volumes/ct_chest_lidc.nii.gz")
    numbers = _load(data_dir / "labels/ct_chest_lidc.nii.gz")[0].numpy().astype(int)
    groups = (range(10, 15), range(92, 116), range(69, 75), range(26, 51), (86, 87))
    label = np.zeros(numbers.shape, dtype=np.uint8)
    for index, group in enumerate(groups, start=1):
        label[np.isin(numbers, list(group))] = index
    return image, label
