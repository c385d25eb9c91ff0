# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import ClassesToIndicesd, Compose, Orientationd

from bundle.data import (
    Foregroundd,
    Modalityd,
    NormalizeByModalityd,
    PadToCropd,
    PlainStore,
    PreparedVolume,
    ReadVolumed,
    ToPlainTensorsd,
    VolumeSet,
)
from bundle.errors import UserError, VolumeError
from bundle.tasks.classification import FindingsTensord
from bundle.tasks.segmentation import (
    LabelsInForegroundd,
    ReadLabelMapd,
    check_classes,
    check_labelled,
    check_validated,
    find_segmentations,
    report_unnamed,
    unnamed_values,
)
from tests.data.volumes import mr_phantom, write_nifti

SIZE = (12, 10, 8)
AFFINE = np.diag([2.0, 1.0, 3.0, 1.0])


@pytest.fixture
def image(tmp_path: Path) -> MetaTensor:
    return read_image(write_nifti(tmp_path / "image.nii.gz", mr_phantom(SIZE), AFFINE))


def read_image(path: Path) -> MetaTensor:
    return ReadVolumed()({"image": [str(path)], "name": "image"})["image"]


def read(path: Path, image: MetaTensor, classes: dict[str, int]) -> MetaTensor:
    return ReadLabelMapd(classes=classes)({"label": str(path), "image": image, "name": "image"})["label"]


def test_classes_are_counted_with_the_background():
    assert check_classes({"liver": 1}) == 2
    assert check_classes({"liver": 6, "tumour": 2}) == 3


@pytest.mark.parametrize("classes", [{"a": 0}, {"a": 1, "b": 1}, {"a": 1.5}, {"a": "1"}, {"a": 65536}, [1]])
def test_classes_that_do_not_fit_are_one_line(classes):
    with pytest.raises(UserError, match=r"--classes .* does not fit"):
        check_classes(classes)


@pytest.mark.parametrize("classes", [{}, None])
def test_classes_that_are_not_given_are_asked_for(classes):
    with pytest.raises(UserError, match=r"--classes is not given, and there is no dataset\.json with labels: .*liver"):
        check_classes(classes)


def test_values_become_the_numbers_of_the_classes_in_their_order(tmp_path: Path, image: MetaTensor):
    values = np.random.default_rng(0).choice([0, 1, 2, 300], SIZE).astype(np.int16)
    path = write_nifti(tmp_path / "label.nii.gz", values, AFFINE)
    label = read(path, image, {"far": 300, "near": 1})
    assert label.dtype == torch.uint8 and label.shape == (1, *SIZE)
    expected = np.where(values == 300, 1, np.where(values == 1, 2, 0))
    assert (label[0].numpy() == expected).all()


def test_a_map_on_the_tilted_grid_of_its_image_follows_it_onto_right_angles(tmp_path: Path):
    affine = AFFINE.copy()
    affine[1, 2] = 1.0  # each slice one voxel further along the second axis, so that no value is mixed
    voxels = np.random.default_rng(0).integers(0, 3, SIZE).astype(np.uint8)
    image = read_image(write_nifti(tmp_path / "tilted.nii.gz", voxels * 100.0, affine))
    labels = read(write_nifti(tmp_path / "labels.nii.gz", voxels, affine), image, {"a": 1, "b": 2})
    assert image.shape == labels.shape == (1, 12, 17, 8)
    np.testing.assert_allclose(labels.numpy() * 100, image.numpy(), atol=1e-3)


@pytest.mark.parametrize("codes", ["LPS", "LAS", "PIR", "SAL"])
@pytest.mark.parametrize("shear", [0.0, 1.0])
def test_a_map_with_its_axes_in_another_order_is_sorted(tmp_path: Path, codes: str, shear: float):
    """As dcm2niix writes the label maps of a DICOM series, whose rows run the other way."""
    affine = AFFINE.copy()
    affine[1, 2] = shear
    voxels = np.random.default_rng(0).integers(0, 3, SIZE).astype(np.uint8)
    image = read_image(write_nifti(tmp_path / "image.nii.gz", voxels * 100.0, affine))
    written = nibabel.load(write_nifti(tmp_path / "labels.nii.gz", voxels, affine))
    change = nibabel.orientations.ornt_transform(
        nibabel.io_orientation(affine), nibabel.orientations.axcodes2ornt(codes)
    )
    nibabel.save(written.as_reoriented(change), tmp_path / "turned.nii.gz")
    labels = read(tmp_path / "turned.nii.gz", image, {"a": 1, "b": 2})
    np.testing.assert_allclose(labels.numpy() * 100, image.numpy(), atol=1e-3)


def test_an_empty_label_map_is_all_background(tmp_path: Path, image: MetaTensor):
    assert not read(write_nifti(tmp_path / "label.nii", np.zeros(SIZE, np.uint8), AFFINE), image, {"a": 1}).any()


def test_a_grid_rounded_otherwise_is_the_same_and_becomes_the_images(tmp_path: Path, image: MetaTensor):
    rounded = AFFINE.copy()
    rounded[0, 3] += 0.05
    label = read(write_nifti(tmp_path / "label.nii.gz", np.ones(SIZE, np.uint8), rounded), image, {"a": 1})
    assert torch.equal(label.affine, image.affine)


@pytest.mark.parametrize("change", ["size", "origin", "spacing", "flip"])
def test_another_grid_is_refused(tmp_path: Path, image: MetaTensor, change: str):
    affine, size = AFFINE.copy(), SIZE
    if change == "size":
        size = (12, 10, 9)
    elif change == "origin":
        affine[1, 3] = 0.5
    elif change == "spacing":
        affine[2, 2] = 3.1
    else:
        affine[0] *= -1
    path = write_nifti(tmp_path / "label.nii.gz", np.ones(size, np.uint8), affine)
    with pytest.raises(VolumeError, match="not on one grid"):
        read(path, image, {"a": 1})


@pytest.mark.parametrize("sheared", [False, True], ids=["right angles", "tilted slices"])
def test_a_map_whose_axes_another_tool_has_turned_is_turned_back(tmp_path: Path, sheared: bool):
    """As of a DICOM series and the label map of the NIfTI file that was made of it."""
    affine = AFFINE.copy()
    affine[1, 2] = 1.1 * sheared
    scan = write_nifti(tmp_path / "scan.nii.gz", np.arange(np.prod(SIZE), dtype=np.float32).reshape(SIZE), affine)
    image = ReadVolumed()({"image": [str(scan)], "name": "scan"})["image"]
    labels = np.random.default_rng(0).integers(0, 3, SIZE).astype(np.uint8)
    straight = read(write_nifti(tmp_path / "label.nii.gz", labels, affine), image, {"a": 1, "b": 2})
    change = np.array([[1, -1], [0, 1], [2, -1]])
    turned = nibabel.orientations.apply_orientation(labels, change)
    path = write_nifti(tmp_path / "t.nii.gz", turned, affine @ nibabel.orientations.inv_ornt_aff(change, SIZE))
    assert torch.equal(read(path, image, {"a": 1, "b": 2}), straight) and straight.unique().numel() == 3


def test_probabilities_are_no_label_map(tmp_path: Path, image: MetaTensor):
    values = np.zeros(SIZE, np.float32)
    values[0, 0, :3] = 0.5, 2.25, 0.5
    path = write_nifti(tmp_path / "label.nii.gz", values, AFFINE)
    with pytest.raises(VolumeError, match=r"values that are no whole numbers, such as 0\.5 and 2\.25 \(3 voxels\)"):
        read(path, image, {"a": 1})


def test_a_map_on_another_grid_is_described_with_axes_and_both_affines(tmp_path: Path, image: MetaTensor):
    affine = np.diag([-2.0, 1.0, 3.25, 1.0])
    path = write_nifti(tmp_path / "label.nii.gz", np.ones(SIZE, np.uint8), affine)
    with pytest.raises(VolumeError) as raised:
        read(path, image, {"a": 1})
    text = str(raised.value)
    assert "axes RAS" in text and "axes LAS" in text and "3.25" in text and "[[2.0, 0.0, 0.0, 0.0]" in text
    assert "\n" not in text


@pytest.mark.parametrize("off", [1e-5, -9e-4, 2e-3])
def test_values_within_a_thousandth_of_whole_numbers_are_rounded(tmp_path: Path, image: MetaTensor, off: float):
    values = np.random.default_rng(0).choice([0, 1, 2, 300], SIZE)
    path = write_nifti(tmp_path / "label.nii.gz", (values + off).astype(np.float64), AFFINE)
    if abs(off) > 1e-3:
        with pytest.raises(VolumeError, match="no whole numbers"):
            read(path, image, {"far": 300, "near": 1})
    else:
        label = read(path, image, {"far": 300, "near": 1})
        assert (label[0].numpy() == np.where(values == 300, 1, np.where(values == 1, 2, 0))).all()


def test_a_map_whose_header_scales_it_is_rounded(tmp_path: Path, image: MetaTensor):
    values = np.random.default_rng(0).choice([0, 1, 2, 104], SIZE)
    scaled = nibabel.Nifti1Image(values.astype(np.float32), AFFINE)
    scaled.set_data_dtype(np.int16)  # nibabel chooses a slope that fills the 16 bits
    nibabel.save(scaled, tmp_path / "label.nii.gz")
    stored = np.asarray(nibabel.load(tmp_path / "label.nii.gz").dataobj)
    assert 1e-5 < np.abs(stored - values).max() < 1e-3
    assert (read(tmp_path / "label.nii.gz", image, {"a": 104})[0].numpy() == (values == 104)).all()


@pytest.mark.parametrize("dtype", [np.int8, np.int64, np.uint64, np.uint16, np.float64])
def test_maps_of_any_integer_type_are_read(tmp_path: Path, image: MetaTensor, dtype: type):
    values = np.random.default_rng(0).choice([0, 1, 2, 117], SIZE).astype(dtype)
    nibabel.save(nibabel.Nifti1Image(values, AFFINE, dtype=dtype), tmp_path / "label.nii.gz")
    assert (read(tmp_path / "label.nii.gz", image, {"a": 117})[0].numpy() == (values == 117)).all()


def masks(folder: Path, **structures: np.ndarray) -> dict[str, str]:
    return {
        name: str(write_nifti(folder / f"{name}.nii.gz", mask.astype(np.uint8), AFFINE))
        for name, mask in structures.items()
    }


def read_masks(files: dict[str, str], image: MetaTensor, classes: dict[str, int]) -> np.ndarray:
    return ReadLabelMapd(classes=classes)({"label": files, "image": image, "name": "image"})["label"][0].numpy()


def test_masks_of_a_real_map_give_that_map(data_dir: Path, tmp_path: Path):
    image = read_image(data_dir / "volumes/mr_body_totalseg.nii.gz")
    whole = nibabel.load(data_dir / "labels/mr_body_totalseg.nii.gz")
    array = np.asarray(whole.dataobj)
    classes = {f"part_{value}": int(value) for value in np.unique(array[array > 0])}
    files = {}
    for name, value in classes.items():
        files[name] = str(tmp_path / f"{name}.nii.gz")
        nibabel.save(nibabel.Nifti1Image((array == value).astype(np.uint8), whole.affine), files[name])
    of_masks = read_masks(files, image, classes)
    of_map = read(data_dir / "labels/mr_body_totalseg.nii.gz", image, classes)[0].numpy()
    assert of_masks.max() == len(classes) and (of_masks == of_map).all()


def test_where_masks_overlap_the_later_class_counts_and_others_are_background(tmp_path: Path, image: MetaTensor):
    one, two, three = np.zeros((3, *SIZE))
    one[:6], two[4:8], three[9:] = 1, 255, 1  # 255 is how some programs write 1
    files = masks(tmp_path, one=one, two=two, three=three)
    expected = np.where(two > 0, 2, np.where(one > 0, 1, 0))
    assert (read_masks(files, image, {"one": 1, "two": 2}) == expected).all()
    expected = np.where(one > 0, 2, np.where(two > 0, 1, 0))
    assert (read_masks(files, image, {"two": 1, "one": 2}) == expected).all()


def test_a_class_without_a_mask_and_a_mask_of_several_values_are_refused(tmp_path: Path, image: MetaTensor):
    several = np.zeros(SIZE)
    several[:3], several[3:6] = 1, 2
    files = masks(tmp_path, liver=several)
    with pytest.raises(VolumeError, match="has no mask of spleen among its 1"):
        read_masks(files, image, {"spleen": 1})
    with pytest.raises(VolumeError, match="mask of liver with several values"):
        read_masks(files, image, {"liver": 1})


def test_real_label_maps_are_on_the_grid_of_their_volume(data_dir: Path):
    volume = read_image(data_dir / "volumes/mr_body_totalseg.nii.gz")
    path = data_dir / "labels/mr_body_totalseg.nii.gz"
    values, counts = np.unique(np.asarray(nibabel.load(path).dataobj), return_counts=True)
    present = {int(value): int(count) for value, count in zip(values, counts) if value > 0}
    value = max(present, key=present.get)
    assert int((read(path, volume, {"largest": value}) > 0).sum()) == present[value]


def test_labelled_voxels_count_as_foreground():
    foreground, label = torch.zeros(2, 1, 4, 4, 4, dtype=torch.uint8)
    foreground[0, 0], label[0, 3, 3, 3] = 1, 2
    item = LabelsInForegroundd()({"label": MetaTensor(label), "foreground": MetaTensor(foreground)})
    assert item["foreground"].dtype == torch.uint8 and int(item["foreground"].sum()) == 17
    assert item["foreground"][0, 3, 3, 3] == 1


def prepared(path: Path, *lengths: int) -> PreparedVolume:
    store = PlainStore(path.parent)
    store.write(path.name, {"label_cls_indices": [torch.arange(length) for length in lengths]})
    return PreparedVolume(path.name, store, path.name, "CT", (4, 4, 4))


def test_every_class_must_be_somewhere_in_the_training_volumes(tmp_path: Path):
    volumes = [prepared(tmp_path / "a", 5, 0, 3), prepared(tmp_path / "b", 5, 2, 0)]
    classes = {"liver": 1, "tumour": 4}
    assert check_labelled(volumes, classes) is volumes
    with pytest.raises(UserError, match=r"none of the 1 training volumes has a voxel of tumour \(4\)"):
        check_labelled(volumes[1:], classes)


def test_a_validation_without_any_class_is_refused_and_one_without_some_is_said(tmp_path: Path, caplog):
    empty, some = prepared(tmp_path / "a", 5, 0, 0), prepared(tmp_path / "b", 5, 2, 0)
    classes = {"liver": 1, "tumour": 4}
    with pytest.raises(UserError, match="none of the 1 validation volumes has a voxel of any class, so no epoch"):
        check_validated([empty], classes)
    volumes = [empty, some]
    assert check_validated(volumes, classes) is volumes
    assert "no validation volume has a voxel of tumour: its Dice is not validated" in caplog.text
    caplog.clear()
    check_validated([some], {"liver": 1})
    assert not caplog.text


def labelled(folder: Path, values: dict[str, tuple[int, ...]]) -> Path:
    for name, present in values.items():
        labels = np.zeros((40, 40, 40), np.int16)
        for place, value in enumerate(present):
            labels[4 + 4 * place : 7 + 4 * place, 10:30, 10:30] = value
        write_nifti(folder / f"imagesTr/{name}.nii.gz", mr_phantom((40, 40, 40)))
        write_nifti(folder / f"labelsTr/{name}.nii.gz", labels)
    return folder


def volume_set(dataset: Path, cache: Path, classes: dict[str, int], **options: Any) -> VolumeSet:
    steps = [
        ReadVolumed(),
        ReadLabelMapd(classes=classes),
        Orientationd(["image", "label"], axcodes="RAS", labels=None),
    ]
    steps += [Modalityd(), Foregroundd(), NormalizeByModalityd(), PadToCropd(spatial_size=(32, 32, 32))]
    steps += [ToPlainTensorsd(["image", "foreground", "valid", "label"])]
    steps += [ClassesToIndicesd("label", num_classes=len(classes) + 1)]
    return VolumeSet(dataset_dir=dataset, transform=Compose(steps), cache_dir=cache, find=find_segmentations, **options)


@pytest.mark.parametrize("store", ["blosc2", "plain"])
def test_values_that_no_class_has_are_told_once_also_of_volumes_from_the_cache(tmp_path: Path, caplog, store: str):
    labelled(tmp_path, {"a": (1, 2), "b": (1, 7), "c": (1, 300, -4), "d": (1, 7), "e": (1, 7), "f": (2, 7)})
    told = []
    for _ in range(2):
        volumes = volume_set(tmp_path, tmp_path / "cache", {"one": 1, "two": 2}, store=store)
        caplog.clear()
        told.append(report_unnamed([*volumes.training, *volumes.validation, *volumes.training]))
        (message,) = [record.getMessage() for record in caplog.records if "no class has" in record.getMessage()]
    held = "5 of 6 label maps hold values that no class has: -4 (c.nii.gz), 300 (c.nii.gz), 7 (4 maps)"
    assert message == f"{held}; they count as background"
    assert told == [{"label values without a class": message}] * 2
    assert "other_values" not in volumes.training[0].load(), "a network needs none of it"
    everything = volume_set(tmp_path, tmp_path / "all", {"a": 1, "b": 2, "c": 7, "d": 300, "e": 4}, hash_names=True)
    assert "c.nii.gz" not in unnamed_values([*everything.training, *everything.validation])


def test_no_class_in_any_volume_says_what_the_label_maps_hold_instead(tmp_path: Path):
    volumes = volume_set(labelled(tmp_path, {"a": (7,), "b": (7,), "c": (7, 9)}), tmp_path / "cache", {"liver": 1})
    every = [*volumes.training, *volumes.validation]
    held = r"3 of 3 label maps hold values that no class has: 9 \(c.nii.gz\), 7 \(all\)"
    with pytest.raises(UserError, match=rf"has a voxel of liver \(1\), and {held}: correct the values in --classes"):
        check_labelled(every, {"liver": 1})


def test_where_all_values_have_a_class_nothing_is_told(tmp_path: Path, caplog):
    volumes = volume_set(labelled(tmp_path, {"a": (1,), "b": (2, 1)}), tmp_path / "cache", {"liver": 1, "spleen": 2})
    caplog.clear()
    assert report_unnamed(volumes.training) == {} and not caplog.text


def test_of_many_values_the_rarest_are_told(tmp_path: Path):
    dataset = labelled(tmp_path, {"a": (1, 2, 3, 4, 5, 6), "b": (1, 2, 3, 4, 5, 7), "c": (1, 8, 9, 10, 11)})
    volumes = volume_set(dataset, tmp_path / "cache", {"liver": 1}, val_fraction=0)
    told = unnamed_values(volumes.training)
    assert told.endswith("11 (c.nii.gz), 2 (a.nii.gz, b.nii.gz), 3 (a.nii.gz, b.nii.gz), and 2 others")


def test_findings_become_a_tensor():
    tensor = FindingsTensord()({"label": [1.0, float("nan"), 0.0]})["label"]
    assert tensor.dtype == torch.float32 and tensor.isnan().tolist() == [False, True, False]
