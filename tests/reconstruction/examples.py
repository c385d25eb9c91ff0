# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""A smooth body on any grid, and a network that knows the answer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from bundle.data import FoundVolume
from bundle.losses import AlignmentLoss, PretrainingLoss, ReconstructionLoss
from bundle.masking import AdaptiveBlocks, MaskSampler
from bundle.reconstruction import TiledReconstruction, WholeVolume, prepare_volume
from tests.data.volumes import preparation, write_nifti

CELL = (4, 4, 4)
CROP = (16, 16, 16)


def oblique_affine() -> np.ndarray:
    """Axes permuted, one flipped, turned by 20 degrees about two axes; voxels of 1.5 x 1 x 2 mm."""
    turn = np.deg2rad(20)
    x = np.array([[1, 0, 0], [0, np.cos(turn), -np.sin(turn)], [0, np.sin(turn), np.cos(turn)]])
    z = np.array([[np.cos(turn), -np.sin(turn), 0], [np.sin(turn), np.cos(turn), 0], [0, 0, 1]])
    permuted = np.array([[0, -1.0, 0], [0, 0, 1], [1, 0, 0]])
    affine = np.eye(4)
    affine[:3, :3] = x @ z @ permuted @ np.diag([1.5, 1.0, 2.0])
    affine[:3, 3] = [-31.0, 17.0, 112.0]
    return affine


def flipped_affine() -> np.ndarray:
    """As most NIfTI files from DICOM: first two axes towards L and P."""
    affine = np.diag([-1.0, -1.5, 2.0, 1.0])
    affine[:3, 3] = [40.0, 50.0, -300.0]
    return affine


def smooth_body(size: tuple[int, int, int], affine: np.ndarray) -> np.ndarray:
    """Float32, in HU: a wide bell of tissue on air with a ripple, a function of the place in mm alone."""
    index = np.stack(np.meshgrid(*map(np.arange, size), indexing="ij"), -1)
    mm = index @ affine[:3, :3].T + affine[:3, 3]
    centre = (np.array(size) - 1) / 2 @ affine[:3, :3].T + affine[:3, 3]
    x, y, z = np.moveaxis(mm - centre, -1, 0)
    bell = np.exp(-(x**2 + 1.3 * y**2 + 0.8 * z**2) / 700)
    return (-950 + 1300 * bell + 60 * np.sin(x / 9) * np.cos(y / 11 + z / 13)).astype(np.float32)


def prepared(path: Path, array: np.ndarray, affine: np.ndarray, **values: Any) -> WholeVolume:
    """The volume, written as NIfTI and prepared by configs/train.yaml."""
    file = write_nifti(path / "volume.nii.gz", array, affine)
    found = FoundVolume(name="volume.nii.gz", files=(str(file),), modality=values.pop("is_a", "CT"))
    return prepare_volume(found, preparation(CROP, cell=CELL, **values))


class Answer(nn.Module):
    """Returns the image itself as its reconstruction, `change`d, and remembers what it could see."""

    def __init__(self, change=lambda image: image) -> None:
        super().__init__()
        self.change = change

    def forward(self, image: Tensor, *, visible: Tensor, hidden: Tensor, **_: Tensor) -> dict[str, Any]:
        return {"reconstruction": self.change(image), "visible": visible, "hidden": hidden}


def tiles(network: nn.Module, **options: Any) -> TiledReconstruction:
    """With the target as it is, so that the network's answer is in prepared units."""
    loss = PretrainingLoss(
        reconstruction=ReconstructionLoss(target="none", visible_weight=0.0), alignment=AlignmentLoss()
    )
    masking = MaskSampler(rule=AdaptiveBlocks(ratio=0.6), cell=CELL)
    return TiledReconstruction(
        network=network, loss=loss, masking=masking, crop_size=CROP, device=torch.device("cpu"), **options
    )
