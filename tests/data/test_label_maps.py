# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""bundle/data/label_maps.py: what is a label map by its path or its voxels, and what is not."""

from __future__ import annotations

from pathlib import Path

import nibabel
import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from bundle.data import ReadVolumed, read_volume
from bundle.data.label_maps import (
    check_include,
    is_included,
    label_map_by_path,
    looks_like_label_map,
    looks_like_probabilities,
)
from bundle.errors import UserError, VolumeError
from tests.data.volumes import ct_phantom, ellipsoid, mr_phantom, write_nifti


@pytest.mark.parametrize(
    "name",
    [
        "labelsTr/liver_001.nii.gz",
        "Task09_Spleen/labelsTr/spleen_2.nii.gz",
        "nnUNet_raw/Dataset004/labelsTs/a.nii.gz",
        "gt_segmentations/a.nii.gz",
        "s0011/segmentations/liver.nii.gz",
        "Labels/a.nrrd",
        "p1/Masks/heart.mha",
        "BraTS20_Training_001/BraTS20_Training_001_seg.nii",
        "BraTS-GLI-00000-000/BraTS-GLI-00000-000-seg.nii.gz",
        "LiTS/segmentation-12.nii",
        "case7/liver_probabilities.nii.gz",
        "case7/softmax_3.nii.gz",
        "btcv/label0001.nii.gz",
        "mmwhs/ct_train_1001_label.nii.gz",
        "slicer/scan.seg.nrrd",
        "slicer/scan-label.nrrd",
        "sub-01/anat/sub-01_dseg.nii.gz",
        "sub-01/anat/sub-01_label-GM_probseg.nii.gz",
        "sub-01/anat/sub-01_desc-brain_mask.nii.gz",
        "freesurfer/aparc+aseg.nii.gz",
        "mask_7.nii.gz",
        "a_seg_2.nii.gz",
    ],
)
def test_names_of_the_known_layouts_are_label_maps(name: str) -> None:
    found = label_map_by_path(name)
    assert found is not None
    reason, pattern = found
    assert "label map" in reason and is_included(name, [pattern])


@pytest.mark.parametrize(
    "name",
    [
        "imagesTr/liver_001_0000.nii.gz",
        "s0011/ct.nii.gz",
        "ct_body_totalseg.nii.gz",
        "segmented_patients/a.nii.gz",
        "LabeledCT/a.nii.gz",
        "unmasked/T1.nii.gz",
        "T1_masked.nii.gz",
        "sub-01_T1w_defaced.nii.gz",
        "roi_3_T2.nii.gz",
        "mask_free_T1.nii.gz",
        "labelled.nii.gz",
        "volume-12.nii",
        "BraTS20_Training_001_t1ce.nii",
    ],
)
def test_names_of_scans_are_not(name: str) -> None:
    assert label_map_by_path(name) is None


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ((), ()),
        (["a/*", "*_seg*"], ("a/*", "*_seg*")),
        ("*_seg*", ("*_seg*",)),
        ("[labels/*, '*_seg*']", ("labels/*", "*_seg*")),
    ],
)
def test_patterns_are_a_list_or_the_text_of_a_command_line(given: object, expected: tuple[str, ...]) -> None:
    assert check_include(given) == expected


def test_patterns_that_are_no_texts_are_refused() -> None:
    with pytest.raises(UserError, match="--include"):
        check_include([1])


@pytest.mark.parametrize(
    ("pattern", "fits"), [("labels/*", True), ("*", True), ("b.nii", True), ("label/*", False), ("a/*", False)]
)
def test_a_star_stands_for_folders_too_and_a_bare_name_for_any_folder(pattern: str, fits: bool) -> None:
    assert is_included("labels/a/b.nii", [pattern]) is fits


def eight_bits(array: np.ndarray) -> np.ndarray:
    low, high = np.percentile(array, (0, 99.9))
    return np.clip((array - low) / (high - low) * 255, 0, 255).astype(np.uint8)


VOLUMES = [
    *("ct_body_totalseg.nii.gz", "ct_chest_lidc.nii.gz", "ct_chest_radiomics1.nrrd", "ct_chest_radiomics2.nrrd"),
    *("ct_spine_tptbox.nii.gz", "mr_body_totalseg.nii.gz", "mr_brain_mni152.nii.gz", "mr_brain_radiomics1.nrrd"),
    *("mr_brain_radiomics2.nrrd", "mr_breast_radiomics.nrrd", "mr_spine_tptbox.nii.gz"),
]


@pytest.mark.parametrize("name", VOLUMES)
def test_no_real_scan_looks_like_a_label_map_not_even_with_8_or_6_bits_or_defaced(data_dir: Path, name: str) -> None:
    array = read_volume([str(data_dir / "volumes" / name)], name)[0].numpy()
    assert not looks_like_label_map(array)
    small = eight_bits(array)
    assert not looks_like_label_map(small)
    small[:, small.shape[1] // 3 :] = 0  # two thirds are a flat background
    assert not looks_like_label_map(small)
    assert not looks_like_label_map(small // 4)


@pytest.mark.parametrize("name", ["ct_body_totalseg", "ct_chest_lidc", "mr_body_totalseg"])
@pytest.mark.parametrize("kind", ["as is", "float", "one structure", "scaled", "coarse"])
def test_real_label_maps_look_like_it_however_they_are_stored(data_dir: Path, name: str, kind: str) -> None:
    array = np.asarray(nibabel.load(data_dir / f"labels/{name}.nii.gz").dataobj)
    if kind == "float":
        array = array.astype(np.float64)
    elif kind == "one structure":
        values, counts = np.unique(array[array > 0], return_counts=True)
        array = (array == values[counts.argmax()]).astype(np.uint8)
    elif kind == "scaled":
        array = array * np.float32(0.999995)
    elif kind == "coarse":
        array = array[::3, ::3, ::3]
    assert looks_like_label_map(array)


@pytest.mark.parametrize("largest", [4e-4, 1e-5])
def test_a_quantitative_map_of_small_values_is_no_label_map(largest: float, tmp_path: Path) -> None:
    """Such as a diffusivity in mm2/s: all of its values are nearly 0, which is a whole number."""
    array = mr_phantom()
    array = (array - array.min()) / (array.max() - array.min()) * largest
    assert not looks_like_label_map(array)
    file = write_nifti(tmp_path / "all/case/a.nii.gz", array.astype(np.float32))
    read(file, from_folder=True)


def soft(array: np.ndarray) -> np.ndarray:
    return array * np.float32(0.37)


def test_probabilities_are_no_label_map() -> None:
    assert not looks_like_label_map(soft(ellipsoid((24, 20, 16))))


def smooth(array: np.ndarray, sigma: float) -> np.ndarray:
    """A soft map as a network gives it: 0 and 1 but for the edge."""
    return gaussian_filter(array.astype(np.float32), sigma)


@pytest.mark.parametrize(("name", "sigma"), [("ct_body_totalseg", 1), ("mr_body_totalseg", 0.7)])
def test_soft_maps_of_real_organs_look_like_probabilities(data_dir: Path, name: str, sigma: float) -> None:
    array = np.asarray(nibabel.load(data_dir / f"labels/{name}.nii.gz").dataobj)
    values, counts = np.unique(array[array > 0], return_counts=True)
    for value in values[np.argsort(counts)[-4:]]:
        assert looks_like_probabilities(smooth(array == value, sigma))
    assert not looks_like_probabilities((array > 0).astype(np.float32))  # whole numbers are a label map


@pytest.mark.parametrize("name", [VOLUMES[0], VOLUMES[5], VOLUMES[6], VOLUMES[9]])
@pytest.mark.parametrize("ends", [(0, 100), (0.5, 99.5), (30, 98)])
def test_no_real_scan_that_was_scaled_to_0_and_1_looks_like_probabilities(
    data_dir: Path, name: str, ends: tuple[float, float]
) -> None:
    array = read_volume([str(data_dir / "volumes" / name)], name)[0].numpy()[::2, ::2, ::2]
    low, high = np.percentile(array, ends)
    assert not looks_like_probabilities(np.clip((array - low) / (high - low), 0, 1))


def test_probabilities_are_refused_where_a_scan_on_their_grid_is_near_and_else_said(tmp_path: Path) -> None:
    affine = np.diag([2.0, 1.0, 3.0, 1.0])
    file = write_nifti(tmp_path / "all/case/liver.nii.gz", smooth(ellipsoid((24, 20, 16)), 0.5), affine)
    item = ReadVolumed()({"image": [str(file)], "name": "a", "from_folder": True})
    kind = "looks like a map of probabilities: from 0 to 1"
    assert item["image"].meta["notes"] == (f"{kind}; taken as a scan, since no file near it is on its grid",)
    write_nifti(tmp_path / "all/case/scan.nii.gz", mr_phantom(), affine)
    with pytest.raises(VolumeError, match=f"{kind}, on the grid of another file near it.*--include"):
        read(file, from_folder=True)


def test_a_label_map_alone_is_refused_with_the_way_to_force_it(tmp_path: Path) -> None:
    file = write_nifti(tmp_path / "all/case/a.nii.gz", ellipsoid((24, 20, 16)).astype(np.int16))
    with pytest.raises(
        VolumeError, match=r"^a: looks like a label map: few whole numbers; if it is a scan, .*--include"
    ):
        ReadVolumed()({"image": [str(file)], "name": "a", "from_folder": True})
    assert ReadVolumed()({"image": [str(file)], "name": "a"})["image"].max() == 1  # named by the user


@pytest.mark.parametrize("ending", ["nii.gz", "nrrd"])
def test_grids_are_compared_in_millimetres(tmp_path: Path, ending: str) -> None:
    """A label map whose header is in micrometres lies on the grid of a scan in millimetres."""
    affine = np.diag([-2.0, -1.0, 3.0, 1.0])
    labels, file = ellipsoid((24, 20, 16)).astype(np.int16), tmp_path / "all/case" / f"a.{ending}"
    write_nifti(tmp_path / "all/case/scan.nii.gz", mr_phantom(), affine)
    if ending == "nrrd":
        lines = ["NRRD0004", "type: short", "dimension: 3", "sizes: 24 20 16", "endian: little", "encoding: raw"]
        lines += ["space: LPS", "space directions: (2000,0,0) (0,1000,0) (0,0,3000)", "space origin: (0,0,0)"]
        lines += ['space units: "um" "um" "um"', "", ""]
        file.write_bytes("\n".join(lines).encode() + labels.tobytes(order="F"))
    else:
        image = nibabel.Nifti1Image(labels, np.diag([1000, 1000, 1000, 1.0]) @ affine)
        image.header.set_xyzt_units("micron")
        nibabel.save(image, file)
    with pytest.raises(VolumeError, match=r"looks like a label map.*on the grid of another file"):
        read(file, from_folder=True)


def read(file: Path, **more: object) -> None:
    ReadVolumed()({"image": [str(file)], "name": file.name, **more})


@pytest.mark.parametrize("scan", ["scan.nii.gz", "../up.nii.gz", "../images/case_7_0000.nii.gz"])
def test_a_label_map_is_refused_where_a_scan_on_its_grid_is_near(tmp_path: Path, scan: str) -> None:
    labels = ellipsoid((24, 20, 16)).astype(np.int16)
    affine = np.diag([2.0, 1.0, 3.0, 1.0])
    file = write_nifti(tmp_path / "all/odd/case_7.nii.gz", labels, affine)
    write_nifti(tmp_path / "all/odd" / scan, mr_phantom(), affine)
    with pytest.raises(VolumeError, match=r"looks like a label map.*on the grid of another.*--include"):
        read(file, from_folder=True)
    read(file)  # named by the user


def test_another_grid_is_no_reason_to_refuse_probabilities(tmp_path: Path) -> None:
    folder = tmp_path / "all/case"  # the folders above and beside are looked into, too
    file = write_nifti(folder / "a.nii.gz", smooth(ellipsoid((24, 20, 16)), 0.5))
    write_nifti(folder / "b.nii.gz", ct_phantom(), np.diag([2.0, 1, 1, 1]))
    write_nifti(folder / "c.nii.gz", ct_phantom((24, 20, 17)))
    (folder / "d.nii.gz").write_bytes(b"broken")
    read(file, from_folder=True)


def test_the_scan_beside_a_label_map_is_read(tmp_path: Path) -> None:
    folder = tmp_path / "all/case"
    write_nifti(folder / "a.nii.gz", ellipsoid((24, 20, 16)).astype(np.int16))
    for number, scan in enumerate((ct_phantom(), eight_bits(mr_phantom()))):
        read(write_nifti(folder / f"{number}.nii.gz", scan), from_folder=True)
