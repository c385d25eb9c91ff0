# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""The network of a training from scratch is made for the voxels of the volumes."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch
from monai.networks.nets import SegResNetDS

from bundle.errors import UserError
from bundle.networks import build_encoder
from bundle.tasks.segmentation import scratch_encoder

GIVEN = {"name": "SegResEncoder", "init_filters": 4, "blocks_down": [1, 1, 1, 1]}
AUTO = {**GIVEN, "resolution": "auto"}
#: from array axes that run to the front, the head and the left
TURNED = np.array([[0, 0, -1, 0], [1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 0, 1.0]])


def write(folder: Path, *sizes: tuple[float, float, float]) -> Path:
    """Volumes whose array axes have these voxel sizes."""
    for kind in ("imagesTr", "labelsTr"):
        (folder / kind).mkdir(parents=True)
        for number, size in enumerate(sizes):
            affine = TURNED @ np.diag([*size, 1.0])
            image = nibabel.Nifti1Image(np.ones((4, 4, 4), dtype=np.uint8), affine)
            nibabel.save(image, folder / kind / f"{number}.nii.gz")
    return folder


def test_thick_slices_have_strides_of_their_own_along_the_patients_axes(tmp_path: Path, caplog):
    dataset = write(tmp_path, (1.25, 5.0, 1.25), (1.3, 4.0, 1.2), (1.25, 6.0, 1.25))  # the second axis runs to the head
    with caplog.at_level(logging.INFO):
        found = scratch_encoder(AUTO, dataset_dir=dataset)
    assert found == {**GIVEN, "name": "SegResNetDS", "resolution": [1.25, 1.25, 5.0]}
    assert "4 times as long as wide (1.25 x 1.25 x 5 mm)" in caplog.text and "--encoder#resolution None" in caplog.text
    # a network of MONAI that halves slices two levels later, and our encoder of it
    network = SegResNetDS(out_channels=2, dsdepth=1, **{k: v for k, v in found.items() if k != "name"})
    assert network(torch.zeros(1, 1, 16, 16, 4)).shape == (1, 2, 16, 16, 4)
    assert build_encoder(**found).total_stride == (8, 8, 2)


@pytest.mark.parametrize(
    ("changes", "options"),
    [
        ({}, {"spacing": [1.5, 1.5, 1.5]}),
        ({}, {"spacing": [1.0, None, 3.0]}),  # 1.25 along A
        ({"resolution": None}, {}),
        ({"resolution": [1, 1, 2]}, {}),
        ({"name": "BasicUNet"}, {}),
        ({}, {"pretrained": "model.pt"}),
        ({}, {"spacing": [1, 1]}),  # which the settings refuse, as
        ({}, {"spacing": [0, 1, 5]}),
        ({}, {"spacing": ["a", 1, 5]}),
    ],
)
def test_what_is_asked_for_is_what_it_is(changes: dict[str, Any], options: dict[str, Any], tmp_path: Path):
    found = scratch_encoder({**AUTO, **changes}, dataset_dir=write(tmp_path, (1.25, 5.0, 1.25)), **options)
    expected = {**GIVEN, **{k: v for k, v in changes.items() if v is not None}}
    if changes.get("resolution") is not None:
        expected["name"] = "SegResNetDS"  # since SegResEncoder takes none
    if options.get("spacing") == [1.0, None, 3.0]:
        expected |= {"name": "SegResNetDS", "resolution": [1.0, 1.25, 3.0]}
    assert found == expected


def test_voxels_that_are_nearly_cubes_and_headers_that_cannot_be_read_change_nothing(tmp_path: Path):
    assert scratch_encoder(AUTO, dataset_dir=write(tmp_path / "a", (1.0, 1.9, 1.0))) == GIVEN
    broken = write(tmp_path / "b", (1.0, 5.0, 1.0))
    (broken / "labelsTr/0.nii.gz").write_bytes(b"no label map")
    assert scratch_encoder(AUTO, dataset_dir=broken, spacing="own") == GIVEN


@pytest.mark.parametrize("resolution", ["finest", [1, 5], [1, 1, 0], 5])
def test_another_resolution_is_one_line(resolution: Any, tmp_path: Path):
    with pytest.raises(UserError, match=r"--encoder#resolution .* give auto, null, or mm per axis"):
        scratch_encoder({**GIVEN, "resolution": resolution}, dataset_dir=tmp_path)
