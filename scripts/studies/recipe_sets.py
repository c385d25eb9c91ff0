# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""Makes another set of a labelled one, for scripts/studies/recipe.py: of thick slices, or with a second channel.

    python scripts/studies/recipe_sets.py thick --dataset_dir left_atrium --split split.json --output left_atrium_thick

`thick` takes the mean of every four slices of the last axis, and as label what half of them or more are. `two_channels`
adds the image inverted, blurred by one voxel, and with noise. Files that are in --output already are not made again.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
from scipy.ndimage import gaussian_filter
from tqdm import tqdm

#: slices that become one
_SLICES = 4
#: of the second channel's noise, as a share of the image's deviation
_NOISE = 0.05

Pair = tuple[nibabel.Nifti1Image, nibabel.Nifti1Image]


def make_thick(image: nibabel.Nifti1Image, label: nibabel.Nifti1Image, number: int) -> Pair:  # noqa: ARG001 - as the other
    """Image and label, 0 and 1, in slices four times as thick; up to three at the end are left out."""
    affine = image.affine.copy()
    affine[:3, 3] += (_SLICES - 1) / 2 * affine[:3, 2]
    affine[:3, 2] *= _SLICES
    means = []
    for one in (image, label):
        array = np.asarray(one.dataobj, dtype=np.float32)
        count = array.shape[2] // _SLICES
        means.append(array[..., : count * _SLICES].reshape(*array.shape[:2], count, _SLICES).mean(-1))
    return nibabel.Nifti1Image(means[0], affine), nibabel.Nifti1Image((means[1] >= 0.5).astype(np.uint8), affine)


def add_channel(image: nibabel.Nifti1Image, label: nibabel.Nifti1Image, number: int) -> Pair:
    """The image with a second channel that tells nothing new, and the label as it is; `number` seeds the noise."""
    array = np.asarray(image.dataobj, dtype=np.float32)
    noise = np.random.default_rng(number).normal(0, _NOISE * array.std(), array.shape)
    second = array.max() - gaussian_filter(array, 1.0) + noise
    return nibabel.Nifti1Image(np.stack([array, second], -1).astype(np.float32), image.affine), label


SETS: dict[str, Callable[[nibabel.Nifti1Image, nibabel.Nifti1Image, int], Pair]] = {
    "thick": make_thick,
    "two_channels": add_channel,
}


def main(arguments: list[str] | None = None) -> None:
    """Runs the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("set", choices=SETS)
    parser.add_argument("--dataset_dir", type=Path, required=True, help="folder with imagesTr and labelsTr")
    parser.add_argument("--split", type=Path, required=True, help='json with the files of "dev" and "test"')
    parser.add_argument("--output", type=Path, required=True, help="folder to make imagesTr and labelsTr in")
    options = parser.parse_args(arguments)
    split = json.loads(options.split.read_text())
    folders = ("imagesTr", "labelsTr")
    for folder in folders:
        (options.output / folder).mkdir(parents=True, exist_ok=True)
    for number, name in enumerate(tqdm([*split["dev"], *split["test"]], desc="volumes")):
        if (options.output / "labelsTr" / name).exists():  # which is written last
            continue
        image, label = (nibabel.load(options.dataset_dir / folder / name) for folder in folders)
        made = SETS[options.set](image, label, number)
        for folder, volume in zip(folders, made, strict=True):
            nibabel.save(volume, options.output / folder / name)


if __name__ == "__main__":
    main()
