# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""Boxes follow their volume through orientation, spacing, crop and padding, and back to mm."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from monai.data import MetaTensor
from monai.transforms import Compose, CropForegroundd, DivisiblePadd, Orientationd
from scipy.spatial.transform import Rotation

from bundle.data import Foregroundd, Modalityd, OptionalSpacingd, PadToCropd, ReadVolumed, ToPlainTensorsd
from bundle.errors import UserError, VolumeError
from bundle.tasks.detection import BoxesToVoxelsd, ReadBoxesd, boxes_in_voxels, boxes_in_world, check_box_classes
from tests.tasks.detection.organ_boxes import labelled_part, organ_box

ORGANS = (1, 2, 3, 4)
SIZES = st.floats(1, 200)


def prepared(data_dir: Path, folder: Path, name: str, spacing: list[float] | None, crop: list[int]) -> dict:
    """A real volume through the steps of the config, with its label map beside it as a `weight_map`."""
    part, labels = labelled_part(data_dir, name)
    nib.save(part, folder / "image.nii")
    nib.save(labels, folder / "labels.nii")
    both = ["image", "weight_map"]
    steps = [
        ReadVolumed(keys="image"),
        ReadVolumed(keys="weight_map"),
        ReadBoxesd(keys="box", classes=["a", "b", "c", "d"]),
        Orientationd(keys=both, axcodes="RAS", labels=None),
        OptionalSpacingd(keys="image", pixdim=spacing),
        OptionalSpacingd(keys="weight_map", pixdim=spacing, mode="nearest"),
        Modalityd(keys="image"),
        Foregroundd(keys="image"),
        CropForegroundd(keys=[*both, "foreground"], source_key="foreground", margin=4, allow_smaller=True),
        DivisiblePadd(keys=[*both, "foreground"], k=[16, 16, 8], mode=["edge", "constant", "constant"]),
        PadToCropd(keys="image", spatial_size=crop),
        BoxesToVoxelsd(keys="box"),
        ToPlainTensorsd(keys=["image", "foreground", "valid", "box", "label", "affine", "weight_map"]),
    ]
    item = {
        "image": [str(folder / "image.nii")],
        "weight_map": [str(folder / "labels.nii")],
        "name": name,
        "modality": "",
        "box": [organ_box(labels, organ) for organ in ORGANS],
        "label": [0, 1, 2, 3],
    }
    return Compose(steps)(item)


def painted(labels: torch.Tensor, organ: int) -> np.ndarray:
    voxels = np.argwhere(labels[0].numpy() == organ)
    return np.concatenate([voxels.min(0), voxels.max(0) + 1])


@pytest.mark.parametrize("name", ["ct_body_totalseg", "mr_body_totalseg"])  # RAS and LPS files
def test_boxes_are_where_the_organs_are_after_crop_padding_and_flips_of_axes(data_dir: Path, tmp_path: Path, name: str):
    item = prepared(data_dir, tmp_path, name, spacing=None, crop=[64, 64, 48])
    assert not item["valid"].all() and item["box"].dtype == torch.float32 and item["label"].dtype == torch.uint8
    for organ, box in zip(ORGANS, item["box"], strict=True):
        np.testing.assert_allclose(box.numpy(), painted(item["weight_map"], organ), atol=1e-3)


def test_boxes_are_where_the_organs_are_at_another_spacing(data_dir: Path, tmp_path: Path):
    item = prepared(data_dir, tmp_path, "mr_body_totalseg", spacing=[1.5, 2.0, 3.0], crop=[64, 64, 16])
    for organ, box in zip(ORGANS, item["box"], strict=True):
        # nearest neighbour moves an edge by up to half a coarse voxel
        np.testing.assert_allclose(box.numpy(), painted(item["weight_map"], organ), atol=1.01)


def test_prepared_boxes_return_to_the_mm_of_the_list(data_dir: Path, tmp_path: Path):
    item = prepared(data_dir, tmp_path, "mr_body_totalseg", spacing=[1.5, 2.0, 4.0], crop=[64, 64, 48])
    _, labels = labelled_part(data_dir, "mr_body_totalseg")
    listed = [organ_box(labels, organ) for organ in ORGANS]
    np.testing.assert_allclose(boxes_in_world(item["box"], item["affine"]), listed, atol=1e-2)


def test_a_box_by_hand():
    affine = np.array([[-2.0, 0, 0, 100], [0, 3, 0, -50], [0, 0, 4, 10], [0, 0, 0, 1]])
    # voxels 10 and 11 of the first axis have centres at 80 and 78 mm, and reach from 81 to 77 mm
    box = boxes_in_voxels([[79.0, -50.0, 14.0, 4.0, 3.0, 8.0]], affine)
    np.testing.assert_allclose(box, [[10, 0, 0.5, 12, 1, 2.5]])
    assert boxes_in_voxels([], affine).shape == boxes_in_world([], affine).shape == (0, 6)


@given(st.tuples(*[st.floats(-300, 300)] * 3), st.tuples(SIZES, SIZES, SIZES), st.permutations([0, 1, 2]))
def test_world_to_voxels_and_back_is_the_same_box(centre, size, axes):
    affine = np.eye(4)
    affine[:3, :3] = np.diag([0.7, -1.3, 2.5])[axes]
    affine[:3, 3] = [12.5, -200, 33]
    box = np.array([[*centre, *size]])
    np.testing.assert_allclose(boxes_in_world(boxes_in_voxels(box, affine), affine), box, atol=1e-9)


def test_a_box_in_an_oblique_volume_is_enclosed():
    angle = np.deg2rad(30)
    affine = np.eye(4)
    affine[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    (box,) = boxes_in_voxels([[0, 0, 0, 2, 2, 2]], affine)
    half = np.cos(angle) + np.sin(angle)
    np.testing.assert_allclose(box, [0.5 - half, 0.5 - half, -0.5, 0.5 + half, 0.5 + half, 1.5])


def item_with(box: list, label: list) -> dict:
    return {"image": MetaTensor(torch.zeros(1, 8, 8, 8)), "name": "a.nii.gz", "box": box, "label": label}


def test_an_empty_list_of_boxes_stays_empty():
    item = BoxesToVoxelsd()(ReadBoxesd(classes=["a"])(item_with([], [])))
    assert item["box"].shape == (0, 6) and item["label"].shape == (0,)


@pytest.mark.parametrize(
    ("box", "label", "message"),
    [
        ([[4, 4, 4, 2, 2, 2]], [1], "label 1"),
        ([[4, 4, 4, 2, 2, 2]], [-1], "label -1"),
        ([[4, 4, 4, 2, 2, 2]], ["a"], "label 'a'"),
        ([[4, 4, 4, 2, 2, "x"]], [0], "not six numbers"),
        ([[4, 4, float("nan"), 2, 2, 2]], [0], "not finite"),
        ([[-4, 4, 4, 2, 2, 2]], [0], "(-4, 4, 4) mm, which is not in the image"),
    ],
)
def test_a_wrong_box_is_one_line_that_names_its_volume(box: list, label: list, message: str):
    with pytest.raises(VolumeError) as error:
        BoxesToVoxelsd()(ReadBoxesd(classes=["a"])(item_with(box, label)))
    assert "a.nii.gz" in str(error.value) and message in str(error.value)


def test_a_box_that_reaches_out_of_the_image_is_clipped_to_it():
    item = BoxesToVoxelsd()(ReadBoxesd(classes=["a"])(item_with([[0, 4, 7, 6, 2, 6]], [0])))
    assert item["box"].tolist() == [[0, 3.5, 4.5, 3.5, 5.5, 8]]


@pytest.mark.parametrize("classes", [[], {}, ["a", "a"], [1], {"a": 0, "b": 0}, {"a": "x"}, {"a": -1}, {1: 0}, None])
def test_each_class_has_a_name_and_a_label(classes):
    with pytest.raises(UserError, match="--classes"):
        check_box_classes(classes)


def test_labels_of_the_list_are_those_of_the_classes():
    classes = {"cyst": 7, "nodule": 2}
    assert check_box_classes(classes) == 2
    boxes = [[4, 4, 4, 2, 2, 2]] * 3
    item = ReadBoxesd(classes=classes)(item_with(boxes, [2, 7, 2]))
    assert item["label"].tolist() == [1, 0, 1]
    with pytest.raises(VolumeError, match="label 1, --classes has labels 7, 2"):
        ReadBoxesd(classes=classes)(item_with(boxes, [2, 1, 2]))
    names, numbered = (ReadBoxesd(classes=c)(item_with(boxes, [0, 1, 0])) for c in (["a", "b"], {"a": 0, "b": 1}))
    assert names["label"].tolist() == numbered["label"].tolist() == [0, 1, 0]


def tilted(degrees: tuple[float, float, float], spacing: tuple[float, float, float] = (0.7, 1.3, 2.5)) -> np.ndarray:
    affine = np.eye(4)
    affine[:3, :3] = Rotation.from_euler("xyz", degrees, degrees=True).as_matrix() * spacing
    affine[:3, 3] = [12.5, -200, 33]
    return affine


@given(st.tuples(*[st.floats(-300, 300)] * 3), st.tuples(SIZES, SIZES, SIZES), st.floats(-30, 30), st.integers(0, 2))
def test_a_box_in_a_tilted_volume_comes_back_with_its_size(centre, size, angle, axis):
    affine = tilted(tuple(np.roll([angle, 0, 0], axis)))
    box = np.array([[*centre, *size]])
    np.testing.assert_allclose(boxes_in_world(boxes_in_voxels(box, affine), affine), box, atol=1e-6)


@given(st.tuples(*[st.floats(-90, 90)] * 3), SIZES)
def test_at_any_angle_a_box_has_a_size_and_none_is_larger_than_the_box_that_encloses_it(degrees, size):
    affine = tilted(degrees)
    voxels = boxes_in_voxels([[0, 0, 0, size, size, size]], affine)
    ((*centre, width, height, depth),) = boxes_in_world(voxels, affine)
    assert np.abs(centre).max() < 1e-6
    assert min(width, height, depth) > 0 and max(width, height, depth) <= 3 * size


def test_a_cube_at_45_degrees_is_a_cube():
    affine = tilted((0, 0, 45))
    (box,) = boxes_in_world(boxes_in_voxels([[1, 2, 3, 12, 12, 12]], affine), affine)
    np.testing.assert_allclose(box, [1, 2, 3, 12, 12, 12], atol=1e-6)
