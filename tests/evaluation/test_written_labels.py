# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""bundle/evaluation/written_labels.py: label maps on their own grids, whoever wrote them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
import pytest

from bundle.errors import UserError, VolumeError
from bundle.evaluation.label_map_case import LabelledCase, evaluate_case
from bundle.evaluation.written_labels import find_label_maps, read_labels

CLASSES = {"liver": 6, "tumour": 9}
AFFINE = np.array([[0, -2.0, 0, 40], [1.5, 0, 0, -9], [0, 0, 3.0, 7], [0, 0, 0, 1]])


def labels() -> np.ndarray:
    values = np.zeros((7, 8, 9), dtype=np.uint8)
    values[1:4, 2:7, 3:5], values[2, 3, 4], values[5, 5, 5] = 6, 9, 200
    return values


def write(path: Path, values: np.ndarray, affine: np.ndarray = AFFINE) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(values, affine), path)
    return str(path)


def whole(shape: tuple[int, ...]) -> tuple[slice, ...]:
    return tuple(slice(0, size) for size in shape)


def test_each_class_has_its_mask_and_other_values_are_said(tmp_path: Path) -> None:
    read = read_labels(write(tmp_path / "a.nii.gz", labels()), CLASSES, "a")
    for name, value in CLASSES.items():
        assert np.array_equal(read.cut(name, whole((7, 8, 9))), labels() == value)
        assert read.count(name) == (labels() == value).sum()
    assert read.boxes["tumour"] == (slice(2, 3), slice(3, 4), slice(4, 5))
    assert read.others == (200,)


def test_a_map_without_a_class_and_an_empty_map_have_empty_masks(tmp_path: Path) -> None:
    read = read_labels(write(tmp_path / "a.nii.gz", np.zeros((4, 4, 4), dtype=np.uint8)), CLASSES, "a")
    assert read.boxes == {"liver": None, "tumour": None} and read.count("liver") == 0
    assert not read.cut("liver", whole((4, 4, 4))).any()


@pytest.mark.parametrize("codes", ["RAS", "LPS", "PIR", "SAL", "AIL"])
def test_voxels_in_another_order_are_sorted_and_nothing_is_resampled(tmp_path: Path, codes: str) -> None:
    reference = read_labels(write(tmp_path / "a.nii.gz", labels()), CLASSES, "a")
    image = nibabel.Nifti1Image(labels(), AFFINE)
    change = nibabel.orientations.ornt_transform(
        nibabel.io_orientation(AFFINE), nibabel.orientations.axcodes2ornt(codes)
    )
    nibabel.save(image.as_reoriented(change), tmp_path / "b.nii.gz")
    read = read_labels(str(tmp_path / "b.nii.gz"), CLASSES, "a", like=reference.grid)
    assert all(np.array_equal(read.masks[name], reference.masks[name]) for name in CLASSES)
    assert read.boxes == reference.boxes and not read.resampled


def test_a_map_on_another_grid_is_refused_with_both_grids_or_resampled_on_request(tmp_path: Path) -> None:
    values = np.zeros((12, 12, 12), dtype=np.uint8)
    values[4:8, 4:8, 4:8] = 6
    fine = read_labels(write(tmp_path / "a.nii.gz", values, np.eye(4)), CLASSES, "a")
    coarse_affine = np.diag([2.0, 2, 2, 1])
    coarse_affine[:3, 3] = 0.5
    coarse = write(tmp_path / "b.nii.gz", values[::2, ::2, ::2], coarse_affine)
    with pytest.raises(
        VolumeError, match=r"another grid: 6 x 6 x 6 voxels, axes RAS, affine .*12 x 12 x 12.*--resample"
    ):
        read_labels(coarse, CLASSES, "a", like=fine.grid)
    read = read_labels(coarse, CLASSES, "a", like=fine.grid, resample=True)
    assert np.array_equal(read.cut("liver", whole((12, 12, 12))), values == 6)
    assert read.resampled


def test_rounded_affines_are_one_grid(tmp_path: Path) -> None:
    reference = read_labels(write(tmp_path / "a.nii.gz", labels()), CLASSES, "a")
    read_labels(write(tmp_path / "b.nii.gz", labels(), AFFINE + 1e-3), CLASSES, "a", like=reference.grid)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        (np.full((4, 4, 4), 0.5, dtype=np.float32), r"no whole numbers, such as 0\.5 \(64 voxels\)"),
        (np.full((4, 4, 4), 70000, dtype=np.int32), "the value 70000, above 65535"),
    ],
)
def test_what_is_no_label_map_is_one_line(tmp_path: Path, values: np.ndarray, said: str) -> None:
    with pytest.raises(VolumeError, match=said):
        read_labels(write(tmp_path / "a.nii.gz", values), CLASSES, "a")
    with pytest.raises(VolumeError, match="does not exist"):
        read_labels(str(tmp_path / "no.nii.gz"), CLASSES, "a")


def test_masks_of_structures_may_overlap_and_one_may_be_missing(tmp_path: Path) -> None:
    liver, tumour = np.zeros((2, 4, 5, 6), dtype=np.uint8)
    liver[1:3, 1:4, 1:4], tumour[2:4, 2:4, 2:4] = 1, 255
    files = {"liver": write(tmp_path / "liver.nii.gz", liver), "tumour": write(tmp_path / "tumour.nii.gz", tumour)}
    read = read_labels(files, CLASSES, "a")
    assert (read.count("liver"), read.count("tumour")) == (18, 8)
    assert read_labels({"liver": files["liver"]}, CLASSES, "a").masks.keys() == {"liver"}
    with pytest.raises(VolumeError, match="no mask that is named after a class"):
        read_labels({"spleen": files["liver"]}, CLASSES, "a")
    other = write(tmp_path / "other.nii.gz", tumour, AFFINE + 5)
    with pytest.raises(VolumeError, match=r"has masks on two grids: .*other\.nii\.gz has .*; another one .*one grid"):
        read_labels({**files, "tumour": other}, CLASSES, "a")


def test_label_maps_and_masks_are_found_in_any_layout(tmp_path: Path) -> None:
    for name in ("a.nii.gz", "sub dir/b.nrrd", "s1/liver.nii.gz", "s1/tumour.nii.gz", "s2/segmentations/liver.nii.gz"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    assert find_label_maps(tmp_path, CLASSES) == {
        "a": str(tmp_path / "a.nii.gz"),
        "sub dir/b": str(tmp_path / "sub dir/b.nrrd"),
        "s1": {"liver": str(tmp_path / "s1/liver.nii.gz"), "tumour": str(tmp_path / "s1/tumour.nii.gz")},
        "s2": {"liver": str(tmp_path / "s2/segmentations/liver.nii.gz")},
    }
    (tmp_path / "label_maps").mkdir()
    (tmp_path / "label_maps/c.nii.gz").write_bytes(b"")
    assert find_label_maps(tmp_path, CLASSES) == {"c": str(tmp_path / "label_maps/c.nii.gz")}
    with pytest.raises(UserError, match="is no folder: give"):
        find_label_maps(tmp_path / "nonesuch", CLASSES)


@pytest.mark.parametrize(
    ("off", "told"),
    [
        (("reference",), r"has a reference that is not on the scan's grid: the reference: 6 x.*resample the reference"),
        (("prediction",), r"has a prediction that is not on the scan's grid: the prediction: 4 x.*predict on the scan"),
        (("reference", "prediction"), r"has a reference and a prediction that are not on .* grid: .* and predict on"),
    ],
)
def test_an_evaluation_says_which_of_two_label_maps_is_off_the_grid_of_the_scan(
    tmp_path: Path, off: tuple[str, ...], told: str
) -> None:
    values = np.zeros((12, 12, 12), dtype=np.uint8)
    values[4:8, 4:8, 4:8] = 6
    files = {}
    for name in ("scan", "reference", "prediction"):
        step = 2 + (name == "prediction") if name in off else 1
        affine = np.diag([step, step, step, 1.0])
        files[name] = write(tmp_path / f"{name}.nii.gz", values[::step, ::step, ::step], affine)
    turned = nibabel.load(files["scan"]).as_reoriented(np.array([[1, -1], [0, 1], [2, 1]]))
    nibabel.save(nibabel.Nifti1Image(np.asarray(turned.dataobj).copy(), turned.affine), files["scan"])  # other axes
    case = LabelledCase("a", "a", (files["scan"],), files["reference"], files["prediction"])
    same = {"liver": 6}
    with pytest.raises(VolumeError, match=told) as raised:
        evaluate_case(case, same, prediction_classes=same, tolerance_mm={"liver": 2.0})
    assert ("the prediction: " in str(raised.value)) == ("prediction" in off)
    with pytest.raises(VolumeError, match="has a prediction on another grid"):
        evaluate_case(replace(case, image=()), same, prediction_classes=same, tolerance_mm={"liver": 2.0})


def test_a_region_has_several_values_and_may_overlap_another(tmp_path: Path) -> None:
    regions = {"all": [6, 9], "tumour": [9], "odd": [200, 7]}
    read = read_labels(write(tmp_path / "a.nii.gz", labels()), regions, "a")
    for name, values in regions.items():
        assert np.array_equal(read.cut(name, whole((7, 8, 9))), np.isin(labels(), values))
    assert read.others == ()
    corner = (slice(0, 3), slice(0, 4), slice(4, 9))  # a part of the masks
    assert np.array_equal(read.cut("all", corner), np.isin(labels(), (6, 9))[corner])
    assert not read.cut("tumour", (slice(0, 2),) * 3).any()


def test_voxels_to_ignore_count_in_nothing(tmp_path: Path) -> None:
    """By the numbers of voxels: of what is predicted, the part where the reference says 200 is left out."""
    truth = labels()
    truth[0], predicted = 200, labels()
    predicted[:2, 2:7, 3:5] = 6  # 10 voxels too many, where the reference is not to count
    case = LabelledCase(
        "a", "a", (), write(tmp_path / "a.nii.gz", truth), write(tmp_path / "b.nii.gz", predicted, AFFINE)
    )
    options = {"prediction_classes": CLASSES, "tolerance_mm": dict.fromkeys(CLASSES, 1.0)}
    found = evaluate_case(case, CLASSES, ignore=200, **options)
    assert found.rows[0]["dice"] == 1 and found.rows[0]["volume_ml"] == found.rows[0]["reference_ml"]
    assert found.others == ((), (200,))
    liver = int((labels() == 6).sum())
    assert evaluate_case(case, CLASSES, **options).rows[0]["dice"] == pytest.approx(2 * liver / (2 * liver + 10))


@pytest.mark.parametrize("names", [("a.nii.gz", "a.nrrd"), ("a/liver.nii.gz", "a/liver.nii")])
def test_two_predictions_of_one_name_are_refused_and_not_the_last_taken(tmp_path: Path, names: tuple[str, str]) -> None:
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(UserError, match="which have one name: keep one of them there"):
        find_label_maps(tmp_path, CLASSES)
