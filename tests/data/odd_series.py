# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""Odd DICOM series of each kind that hospitals have, made from a real CT, with the values and places they were made of.

To add a kind, write a function that takes the voxels and returns a `Written`, and put `@kind` before it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import nibabel
import numpy as np
from pydicom import Dataset

from tests.data.dicom_files import COLUMN, FIRST, MR, SCREEN_SAVE, STEP, enhanced, image, place, right_affine, save

__all__ = ["ODD_SERIES", "Written", "real_voxels", "write"]

#: of the crop: slices, rows, columns
CROP = (16, 40, 48)


@dataclass(frozen=True)
class Written:
    """A series and what a reader must find in it.

    Attributes:
        images: to be saved, in any order.
        values: ``[slices, rows, columns]`` after rescaling.
        affine: from (column, row, slice) to RAS mm.
        folders: for each image the folder that it lies in; () for one folder.
        readers: other libraries that read this kind rightly: "itk" or "highdicom".
    """

    images: Sequence[Dataset]
    values: np.ndarray
    affine: np.ndarray
    folders: Sequence[str] = ()
    readers: tuple[str, ...] = ()


ODD_SERIES: dict[str, Callable[[np.ndarray], Written]] = {}


def kind(make: Callable[[np.ndarray], Written]) -> Callable[[np.ndarray], Written]:
    ODD_SERIES[make.__name__] = make
    return make


def real_voxels(data_dir: Path) -> np.ndarray:
    """Hounsfield units ``[slices, rows, columns]`` from the middle of a real chest; whole numbers of int64."""
    volume = nibabel.load(data_dir / "volumes/ct_chest_lidc.nii.gz")
    middle = [(size - crop) // 2 for size, crop in zip(volume.shape, CROP[::-1])]
    part = tuple(slice(start, start + crop) for start, crop in zip(middle, CROP[::-1]))
    return np.asarray(volume.dataobj[part]).transpose(2, 1, 0).astype(np.int64).clip(-1024, 3000)


def write(series: Written, folder: Path) -> list[str]:
    """Saves the images, and returns their files."""
    folders = series.folders or [""] * len(series.images)
    files = []
    for number, (one, below) in enumerate(zip(series.images, folders, strict=True)):
        files += save([one], folder / below, f"{number:03d}_")
    return files


def tilted(degrees: float) -> np.ndarray:
    """Direction of a column of slices that are tilted about the first axis."""
    return np.array([0, np.cos(np.deg2rad(degrees)), -np.sin(np.deg2rad(degrees))])


def turned() -> np.ndarray:
    """Directions of row, column and slices that follow no axis of the patient."""
    made = np.linalg.qr(np.random.default_rng(3).normal(size=(3, 3)))[0]
    return made if np.linalg.det(made) > 0 else -made


def mr(stored: np.ndarray, k: int, **more) -> Dataset:
    return image(stored, k, SOPClassUID=MR, Modality="MR", **more)


@kind
def oblique(hu: np.ndarray) -> Written:
    row, column, normal = turned()
    images = [
        image(plane + 1024, k, row=row, column=column, position=FIRST + STEP * k * normal) for k, plane in enumerate(hu)
    ]
    return Written(images, hu, right_affine(row, column, STEP * normal), readers=("itk", "highdicom"))


@kind
def from_the_head_down(hu: np.ndarray) -> Written:
    images = [image(plane + 1024, k) for k, plane in enumerate(hu)][::-1]
    return Written(images, hu, right_affine(), readers=("itk", "highdicom"))


@kind
def tilt_of_the_gantry(hu: np.ndarray) -> Written:
    images = [image(plane + 1024, k, column=tilted(20), GantryDetectorTilt=20) for k, plane in enumerate(hu)]
    return Written(images, hu, right_affine(column=tilted(20)))


@kind
def small_tilt_of_the_gantry(hu: np.ndarray) -> Written:
    images = [image(plane + 1024, k, column=tilted(1.5), GantryDetectorTilt=1.5) for k, plane in enumerate(hu)]
    return Written(images, hu, right_affine(column=tilted(1.5)))


@kind
def tilt_in_the_header_alone(hu: np.ndarray) -> Written:
    images = [image(plane + 1024, k, GantryDetectorTilt=15) for k, plane in enumerate(hu)]
    return Written(images, hu, right_affine(), readers=("itk", "highdicom"))


@kind
def signed_of_12_bits(hu: np.ndarray) -> Written:
    values = hu.clip(-1024, 2047)
    images = [image(plane, k, signed=True, intercept=0, BitsStored=12, HighBit=11) for k, plane in enumerate(values)]
    return Written(images, values, right_affine(), readers=("itk", "highdicom"))


@kind
def unsigned_of_16_bits(hu: np.ndarray) -> Written:
    images = [image((plane + 1024) * 16, k, slope=0.0625) for k, plane in enumerate(hu)]
    return Written(images, hu, right_affine(), readers=("itk", "highdicom"))


@kind
def overlays_above_12_bits(hu: np.ndarray) -> Written:
    values, overlay = hu.clip(-1024, 3071), np.random.default_rng(0).integers(0, 16, hu.shape) << 12
    images = [image((plane + 1024) | overlay[k], k, BitsStored=12, HighBit=11) for k, plane in enumerate(values)]
    return Written(images, values, right_affine(), readers=("itk",))


@kind
def signed_and_unsigned(hu: np.ndarray) -> Written:
    images = [
        image(plane, k, signed=True, intercept=0) if k % 2 else image(plane + 1024, k) for k, plane in enumerate(hu)
    ]
    return Written(images, hu, right_affine())


@kind
def slope_per_slice(hu: np.ndarray) -> Written:
    stored, slopes = (hu + 1024) // 4, [round(0.37 + 0.011 * k, 4) for k in range(len(hu))]
    images = [mr(plane, k, slope=slopes[k], intercept=0) for k, plane in enumerate(stored)]
    return Written(images, stored * np.array(slopes)[:, None, None], right_affine(), readers=("highdicom",))


@kind
def dark_is_high(hu: np.ndarray) -> Written:
    images = [image(plane + 1024, k, PhotometricInterpretation="MONOCHROME1") for k, plane in enumerate(hu)]
    return Written(images, hu, right_affine())


@kind
def padding_outside_a_circle(hu: np.ndarray) -> Written:
    i, j = np.mgrid[: hu.shape[1], : hu.shape[2]]
    outside = (i - hu.shape[1] / 2) ** 2 + (j - hu.shape[2] / 2) ** 2 > (hu.shape[1] / 2) ** 2
    images = [image(np.where(outside, -2000, plane), k, signed=True, intercept=0) for k, plane in enumerate(hu)]
    for one in images:
        one.add_new("PixelPaddingValue", "SS", -2000)
    return Written(images, np.where(outside, hu[:, ~outside].min(), hu), right_affine())


@kind
def scouts_and_screen_saves(hu: np.ndarray) -> Written:
    images = [image(plane + 1024, k) for k, plane in enumerate(hu)]
    scout = image(hu[0] + 1024, 90, row=COLUMN, column=np.array([0.0, 0, -1]), position=place(20))
    scout.ImageType = ["ORIGINAL", "PRIMARY", "LOCALIZER"]
    saved = image(hu[0] * 0, 91, SOPClassUID=SCREEN_SAVE, ImageType=["DERIVED", "SECONDARY", "SCREEN SAVE"])
    return Written([scout, *images, saved], hu, right_affine())


@kind
def copies_of_slices(hu: np.ndarray) -> Written:
    images = [image(plane + 1024, k) for k, plane in enumerate(hu)]
    return Written([*images, *(image(hu[k] + 1024, k) for k in (3, 9))], hu, right_affine())


@kind
def odd_and_even_acquisitions(hu: np.ndarray) -> Written:
    images = [image(plane + 1024, k, AcquisitionNumber=1 + k % 2) for k, plane in enumerate(hu)]
    return Written(images, hu, right_affine(), readers=("itk", "highdicom"))


@kind
def several_folders(hu: np.ndarray) -> Written:
    images = [image(plane + 1024, k) for k, plane in enumerate(hu)]
    return Written(images, hu, right_affine(), [f"DIR{k % 3}/deep" for k in range(len(hu))], ("highdicom",))


@kind
def enhanced_in_one_file(hu: np.ndarray) -> Written:
    stored, order = hu + 1024, np.random.default_rng(0).permutation(len(hu))
    one = enhanced(stored[order], [place(k) for k in order])
    return Written([one], 2 * stored, right_affine(), readers=("highdicom",))


@kind
def enhanced_with_slopes(hu: np.ndarray) -> Written:
    stored, slopes = hu + 1024, 0.3 + 0.02 * np.arange(len(hu))
    one = enhanced(stored, [place(k) for k in range(len(hu))], slopes=list(slopes))
    values = stored * slopes[:, None, None] + np.arange(len(hu))[:, None, None]
    return Written([one], values, right_affine(), readers=("highdicom",))


@kind
def enhanced_with_tilt(hu: np.ndarray) -> Written:
    stored = hu + 1024
    one = enhanced(stored, [place(k) for k in range(len(hu))], column=tilted(-12))
    return Written([one], 2 * stored, right_affine(column=tilted(-12)))


@kind
def enhanced_in_several_files(hu: np.ndarray) -> Written:
    stored, order = hu + 1024, np.random.default_rng(1).permutation(len(hu))
    parts = [order[start::3] for start in range(3)]
    return Written([enhanced(stored[part], [place(k) for k in part]) for part in parts], 2 * stored, right_affine())
